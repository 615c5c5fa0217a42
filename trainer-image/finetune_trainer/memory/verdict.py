"""The verdict on memory: the micro-batch that fits, or the smallest change that would."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_api.quantity import format_bytes, parse_bytes
from finetune_api.reports import MemoryPart, MemoryReport
from finetune_api.resolved import Chosen, StageConfig
from finetune_trainer.errors import StageError
from finetune_trainer.memory.estimate import Estimate, Evaluated, estimate

MARGIN = 0.1
"""Part of the memory that stays free: fragmentation, and what the estimate does not see."""
LARGEST = 64
"""A larger micro-batch gains nothing."""
SHORTEST = 512

CONTROL_GROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Folder, limit, usage, and the statistic of what the kernel gives back; of both versions."""


def verdict(
    config: StageConfig,
    *,
    length: int,
    global_batch_size: int,
    available: int | None = None,
    evaluated: Evaluated | None = None,
) -> tuple[MemoryReport, int, tuple[Chosen, ...]]:
    """Return the report, the micro-batch, and why it is what it is.

    ``length``: tokens of the longest sequence. ``available``: bytes a rank may use; absent: the
    accelerator's memory as the job says it, on a CPU this machine's, shared by the node's ranks.
    ``evaluated``: what is evaluated between steps.
    """
    spec = config.job.spec
    room = available_bytes(config) if available is None else available
    found = estimate(config, length, evaluated)
    limit = None if room is None else int(room * (1 - MARGIN))
    wanted = spec.training.micro_batch_size
    sizes = _sizes(max(1, global_batch_size // spec.resources.world_size))
    chosen: tuple[Chosen, ...] = ()
    if wanted is not None:
        micro = wanted
    else:
        micro, reason = _choose(found, sizes, limit, room)
        chosen = (Chosen(field="training.microBatchSize", value=str(micro), reason=reason),)
    return _report(found, micro, room, limit), micro, chosen


def require(
    config: StageConfig,
    report: MemoryReport,
    micro_batch: int,
    *,
    length: int,
    available: int | None = None,
    evaluated: Evaluated | None = None,
    node: Problem | None = None,
) -> None:
    """Raise ``StageError`` (12) with the smallest change that fits when the report says no.

    ``node``: what is wrong with the memory of a node, which is told as well.
    """
    problems = [node] if node is not None and node.severity == "error" else []
    if report.verdict == "DoesNotFit":
        told = refusal(
            config, report, micro_batch, length=length, available=available, evaluated=evaluated
        )
        problems.insert(0, told)
    if problems:
        raise StageError(ExitCode.DOES_NOT_FIT, *problems)


def refusal(
    config: StageConfig,
    report: MemoryReport,
    micro_batch: int,
    *,
    length: int,
    available: int | None = None,
    evaluated: Evaluated | None = None,
) -> Problem:
    """Return the problem of a job that does not fit, with the smallest change that would."""
    room = available_bytes(config) if available is None else available
    limit = int((room or 0) * (1 - MARGIN))
    own = config.job.spec.training.micro_batch_size is not None
    found = estimate(config, length, evaluated)
    field = "spec.training.microBatchSize" if own and micro_batch > 1 else "spec.resources"
    if found.process + found.held.always + found.training(micro_batch) <= limit:
        field = "spec.evaluation.batchSize"
    longest = max(length, evaluated.length if evaluated else 0)
    fix = _smaller(found, micro_batch, limit) or next(
        (
            change + (f" and training.microBatchSize to {micro}" if micro < micro_batch else "")
            for change, changed, most in _changes(config, longest)
            for micro, peak in _peaks(
                changed, min(length, most), _cut(evaluated, most), micro_batch
            )
            if peak <= limit
        ),
        "use a smaller model or more memory; no single change of this job is enough",
    )
    return Problem(code="does-not-fit", message=report.message, fix=fix, field=field)


def _smaller(found: Estimate, micro_batch: int, limit: int) -> str | None:
    """Return the fix that only does less at once: evaluates less, or trains on less; None: none."""
    evaluated = found.evaluated
    if evaluated is not None:
        for size in _halved(evaluated.at_once(micro_batch)):
            less = replace(found, evaluated=replace(evaluated, batch_size=size))
            if less.peak(micro_batch) <= limit:
                return f"set evaluation.batchSize to {size}"
    for size in _halved(micro_batch):
        if found.peak(size) <= limit:
            return f"set training.microBatchSize to {size}"
    return None


def _halved(size: int) -> Iterator[int]:
    """Yield a size halved again and again, down to one."""
    while size > 1:
        size //= 2
        yield size


def _cut(evaluated: Evaluated | None, most: int) -> Evaluated | None:
    """Return what is evaluated when no sequence is longer than ``most`` tokens."""
    return replace(evaluated, length=min(evaluated.length, most)) if evaluated else None


def _peaks(
    config: StageConfig, length: int, evaluated: Evaluated | None, micro_batch: int
) -> Iterator[tuple[int, int]]:
    """Yield (micro-batch, bytes at the peak) for the job's own micro-batch and for the smallest."""
    found = estimate(config, length, evaluated)
    for size in dict.fromkeys((micro_batch, 1)):
        yield size, found.peak(size)


def available_bytes(config: StageConfig) -> int | None:
    """Return the bytes that one rank may use; None where they are not known."""
    resources = config.job.spec.resources
    if resources.accelerator.device == "cuda":
        memory = resources.accelerator.memory
        return parse_bytes(memory) if memory else None
    if resources.memory:
        return parse_bytes(resources.memory) // resources.processes_per_node
    return machine_memory() // resources.processes_per_node


def machine_memory(root: Path = Path("/")) -> int:
    """Return the memory that can be had here: the machine's, or the control group's if less."""
    available = 0
    for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    for folder, limit_file, usage_file, cached in CONTROL_GROUPS:
        group = root / folder
        try:
            limit = int((group / limit_file).read_text(encoding="ascii"))
            used = int((group / usage_file).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such group, or "max"
            continue
        # Pages of files that nobody has used lately are given back when memory is asked for.
        used = max(0, used - _figure(group / "memory.stat", cached))
        available = min(available, max(0, limit - used))
    return available or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _figure(path: Path, name: str) -> int:
    """Return one of the figures of a control group's statistics; 0 where it is not told."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


def _sizes(a_rank: int) -> list[int]:
    """Return the powers of two that divide the sequences of one rank, the largest first."""
    size, sizes = 1, []
    while size <= min(a_rank, LARGEST) and a_rank % size == 0:
        sizes.append(size)
        size *= 2
    return sizes[::-1]


def _choose(
    found: Estimate, sizes: list[int], limit: int | None, room: int | None
) -> tuple[int, str]:
    """Return the micro-batch and the reason for it."""
    if limit is None or room is None:
        return 1, "the accelerator's memory is not known; set resources.accelerator.memory"
    fits = [size for size in sizes if found.peak(size) <= limit]
    micro = fits[0] if fits else 1
    need = f"needs {format_bytes(found.peak(micro))} of {format_bytes(room)} a rank"
    if not fits:
        return 1, need
    if micro == sizes[0]:
        return micro, f"{need}: all that the global batch gives one rank at once"
    return micro, f"{need}; {micro * 2} would need {format_bytes(found.peak(micro * 2))}"


def _report(found: Estimate, micro: int, room: int | None, limit: int | None) -> MemoryReport:
    """Return the report for a micro-batch."""
    peak = found.peak(micro)
    held = found.held
    during = found.added(micro)
    parts = {
        "weights": held.weights,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
        "buffers": held.buffers,
        "activations": during,
        "process": found.process,
    }
    need = f"{_what(found, micro)} needs {format_bytes(peak)}"
    if room is None or limit is None:
        message = f"{need} a rank; set resources.accelerator.memory to have it compared"
    elif peak <= limit:
        message = f"{need} of {format_bytes(room)} a rank: fits"
    else:
        message = (
            f"{need} a rank, and {format_bytes(room)} are there, of which "
            f"{format_bytes(limit)} can be planned with"
        )
    return MemoryReport(
        verdict="Unknown" if limit is None else "Fits" if peak <= limit else "DoesNotFit",
        predicted_bytes=peak,
        available_bytes=room,
        how=found.how,
        parts=tuple(MemoryPart(name=n, bytes=b) for n, b in parts.items() if b),
        message=message,
    )


def _what(found: Estimate, micro: int) -> str:
    """Return what it is that needs the most memory."""
    evaluated = found.evaluated
    if evaluated is None or found.evaluation(micro) <= found.training(micro):
        return f"micro-batch {micro}"
    return f"evaluating {evaluated.at_once(micro)} x {evaluated.length:,} tokens"


def _changes(config: StageConfig, longest: int) -> Iterator[tuple[str, StageConfig, int]]:
    """Yield (fix, changed job, tokens of its longest sequence), the change that costs least first."""
    spec = config.job.spec
    if not spec.training.gradient_checkpointing:
        changed = with_changes(config, {"training": {"gradientCheckpointing": True}})
        yield "set training.gradientCheckpointing to true", changed, longest
    # DeepSpeed has no pureBf16.
    several = spec.resources.world_size > 1 and spec.training.precision != "pureBf16"
    for stage in (2, 3) if several else ():
        if not spec.parallelism.deepspeed or spec.parallelism.deepspeed.zero_stage < stage:
            changed = with_changes(config, {"parallelism": {"deepspeed": {"zeroStage": stage}}})
            yield f"set parallelism.deepspeed.zeroStage to {stage}", changed, longest
    tokens = longest
    checkpointed = with_changes(config, {"training": {"gradientCheckpointing": True}})
    also = "" if spec.training.gradient_checkpointing else " with gradientCheckpointing: true"
    while tokens // 2 >= SHORTEST:
        tokens //= 2
        yield f"set dataset.maxLength to {tokens}{also}", checkpointed, tokens
    if spec.method.kind == "full":
        changed = with_changes(checkpointed, {"method": {"lora": {}}})
        yield f"use method: {{lora: {{}}}}{also}", changed, longest


def with_changes(config: StageConfig, changes: dict[str, dict[str, Any]]) -> StageConfig:
    """Return the configuration with sections of the spec changed; one-of sections are replaced."""
    data = config.to_json()
    spec = data["job"]["spec"]
    for section, values in changes.items():
        kept = {} if section in {"method", "parallelism"} else spec.get(section, {})
        spec[section] = {**kept, **values}
    return StageConfig.model_validate(data)
