"""Room on the disk for checkpoints, prepared data and the output, said before training starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_api.quantity import format_bytes
from finetune_api.reports import DiskReport
from finetune_api.resolved import StageConfig
from finetune_api.source import parse_uri
from finetune_trainer import methods
from finetune_trainer.errors import StageError
from finetune_trainer.memory.estimate import MOMENTS
from finetune_trainer.model import model_folder
from finetune_trainer.weights import weight_files

SPARE = 2
"""Checkpoints beside the kept ones: the one being written, and one being deleted."""
SNAPSHOTS = 2
"""Weights of best evaluations beside that of each kept checkpoint: the newest, and the next one."""
LOGS = 64 << 20

Free = Callable[[Path], int]


@dataclass(frozen=True)
class Sizes:
    """Bytes on the disk."""

    checkpoint: int
    snapshot: int
    output: int


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write to a folder's file system."""
    return shutil.disk_usage(folder).free


def sizes(config: StageConfig) -> Sizes:
    """Return the size of a checkpoint, of a weights-only snapshot, and of the output."""
    spec = config.job.spec
    counts = methods.counts(methods.structure(config))
    half = spec.training.precision != "fp32"
    moments = MOMENTS.get(spec.training.optimizer, 2.0)
    if spec.parallelism.deepspeed:
        weight, state = (2 if half else 4), 4 * (1 + moments)
    else:
        weight = 2 if spec.training.precision == "pureBf16" else 4
        state = weight * moments
    snapshot = counts.trainable * weight
    base = sum(path.stat().st_size for path in weight_files(model_folder(config)))
    adapter = spec.method.kind != "full"
    output = (base if spec.output.merge or not adapter else 0) + (snapshot if adapter else 0)
    engine = spec.parallelism.deepspeed
    # Where ZeRO does not divide the weights, its own file of a checkpoint has them once more.
    again = snapshot if engine and engine.zero_stage < 3 else 0
    return Sizes(
        checkpoint=snapshot + again + int(counts.trainable * state),
        snapshot=snapshot,
        output=output,
    )


def verdict(
    config: StageConfig,
    *,
    prepared_bytes: int,
    free: Free = free_bytes,
    known: Sizes | None = None,
) -> DiskReport:
    """Return whether everything that the job will write has room.

    ``prepared_bytes``: prepared data that is not on the disk yet. Where the output goes to another
    file system it is compared with that one; the report then tells of the one that is short.
    """
    found = known or sizes(config)
    workspace = Path(config.mounts.workspace)
    keep = config.job.spec.checkpoint.keep
    checkpoints = (keep + SPARE) * found.checkpoint + (keep + SNAPSHOTS) * found.snapshot
    work = checkpoints + prepared_bytes + LOGS
    target = _output_root(config)
    if target is None or _same_device(target, workspace):
        return _compare(work + found.output, free(workspace), "the workspace")
    elsewhere = _compare(found.output, free(target), f"the output ({config.job.spec.output.uri})")
    own = _compare(work, free(workspace), "the workspace")
    return elsewhere if own.verdict == "Fits" and elsewhere.verdict != "Fits" else own


def require(
    config: StageConfig,
    report: DiskReport,
    *,
    known: Sizes | None = None,
) -> None:
    """Raise ``StageError`` (14) with what to change when the report says there is no room."""
    if report.verdict == "DoesNotFit":
        raise StageError(
            ExitCode.STORAGE_FULL,
            refusal(config, report, known=known),
        )


def refusal(
    config: StageConfig,
    report: DiskReport,
    *,
    known: Sizes | None = None,
) -> Problem:
    """Return the problem ``no-room``; the fix names fewer checkpoints where those would do."""
    found = known or sizes(config)
    short = report.needed_bytes - (report.free_bytes or 0)
    keep = config.job.spec.checkpoint.keep
    each = found.checkpoint + found.snapshot
    fewer = keep - -(-short // each) if each else 0
    fix = f"free {format_bytes(short)}, or use a larger volume (spec.workspace)"
    field = "spec.workspace"
    if report.message.startswith("the output"):
        fix, field = f"free {format_bytes(short)} there, or use another claim", "spec.output.uri"
    elif fewer >= 1:
        fix = f"set checkpoint.keep to {fewer}, or " + fix
        field = "spec.checkpoint.keep"
    return Problem(code="no-room", message=report.message, fix=fix, field=field)


def _compare(needed: int, free: int, where: str) -> DiskReport:
    """Return the report of one file system."""
    return DiskReport(
        verdict="Fits" if needed <= free else "DoesNotFit",
        needed_bytes=needed,
        free_bytes=free,
        message=f"{where} needs {format_bytes(needed)}, {format_bytes(free)} free",
    )


def _output_root(config: StageConfig) -> Path | None:
    """Return the claim's folder that the output goes to; None: the workspace."""
    uri = config.job.spec.output.uri
    root = config.mounts.volumes.get(parse_uri(uri).name) if uri else None
    return Path(root) if root else None


def _same_device(one: Path, other: Path) -> bool:
    """Return whether two folders lie on one file system."""
    return one.stat().st_dev == other.stat().st_dev
