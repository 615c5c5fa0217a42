"""Checking every row of a job on this machine, in a process of the trainer's."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.job import JobSpec
from finetune_api.problem import Problem, Refused
from finetune_api.reports import DataReport, PrepareReport
from finetune_api.resolved import Mounts, ResolvedJob, StageConfig
from finetune_cli.run.volumes import claims_of, parse_volumes


@dataclass(frozen=True)
class Checked:
    """What came of it."""

    problems: tuple[Problem, ...]
    exit_code: ExitCode
    summary: str = ""


def check(job: ResolvedJob, volumes: Sequence[str]) -> Checked:
    """Return what is wrong with the rows of a job, whose claims are folders (``claim=folder``)."""
    try:
        folders = parse_volumes(volumes)
    except Refused as refused:
        return Checked(refused.problems, ExitCode.INVALID_CONFIG)
    absent = _absent(job.spec, folders)
    if absent:
        return Checked(tuple(absent), ExitCode.INVALID_CONFIG)
    if find_spec("numpy") is None:
        raise ModuleNotFoundError("numpy", name="numpy")
    report = _report(job, folders)
    if report is None:
        return Checked((_BROKEN,), ExitCode.UNEXPECTED)
    if any(problem.severity == "error" for problem in report.problems):
        return Checked(report.problems, ExitCode.INVALID_DATA)
    return Checked(report.problems, ExitCode.DONE, _summary(report.train))


_BROKEN = Problem(
    code="unexpected",
    message="the check of the rows ended unexpectedly; what it said stands above",
    fix="report it with the lines above",
)


def _absent(spec: JobSpec, folders: Mapping[str, Path]) -> list[Problem]:
    """Return a problem for every claim with data that no folder stands for."""
    found: dict[str, Problem] = {}
    for claim, field, path in claims_of(spec):
        if claim in folders or claim in found or not field.startswith("spec.dataset."):
            continue
        found[claim] = Problem(
            code="volume-not-given",
            field=field,
            message=f"no folder stands for the claim {claim} on this machine",
            fix=f"add --volume {claim}=FOLDER" + (f", a folder with {path} in it" if path else ""),
        )
    return list(found.values())


def _report(job: ResolvedJob, folders: Mapping[str, Path]) -> PrepareReport | None:
    """Return what the trainer says of the rows, None where it ended without a word."""
    with tempfile.TemporaryDirectory(prefix="finetune-validate-") as name:
        folder = Path(name)
        config = StageConfig(
            stage="prepare",
            job=job,
            mounts=Mounts(
                workspace=str(folder),
                volumes={claim: str(path) for claim, path in folders.items()},
            ),
        )
        (folder / "job.json").write_text(json.dumps(config.to_json()), encoding="utf-8")
        command = [sys.executable, "-m", "finetune_trainer.check_data"]
        command += [str(folder / "job.json"), str(folder / "report.json")]
        # Its log goes to stderr; stdout belongs to the problems.
        ended = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)  # noqa: S603
        if ended.returncode or not (folder / "report.json").exists():
            return None
        return PrepareReport.model_validate_json((folder / "report.json").read_bytes())


def _summary(data: DataReport | None) -> str:
    """Return the rows in one line."""
    if data is None:
        return ""
    dropped = f", {data.rows_dropped:,} dropped" if data.rows_dropped else ""
    return f"{data.rows_used:,} of {data.rows:,} rows can be used{dropped}"
