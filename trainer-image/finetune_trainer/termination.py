"""The termination message: one JSON document below 4 KiB, where Kubernetes or the cli reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from finetune_api.names import TERMINATION_LOG
from finetune_api.problem import Problem
from finetune_api.reports import TerminationReport

ENVIRONMENT = "FINETUNE_TERMINATION_LOG"
LIMIT = 4096
"""Bytes: Kubernetes cuts what is longer."""


def fitted(report: TerminationReport) -> bytes:
    """Return the report as JSON below the limit: details go first, what ended it never."""
    attempts = (
        report,
        report.model_copy(update={"problems": tuple(map(_shortened, report.problems))}),
        report.model_copy(update={"problems": tuple(map(_shortened, report.problems[:1]))}),
        report.model_copy(
            update={
                "problems": tuple(map(_shortened, report.problems[:1])),
                "rejected": (),
                "choices": report.choices and report.choices.model_copy(update={"chosen": ()}),
            }
        ),
        report.model_copy(
            update={
                "problems": tuple(map(_shortened, report.problems[:1])),
                "rejected": (),
                "choices": None,
            }
        ),
    )
    for smaller in attempts:
        data = json.dumps(smaller.to_json(), ensure_ascii=False).encode()
        if len(data) < LIMIT:
            return data
    bare = attempts[-1].model_copy(
        update={
            "problems": tuple(map(_least, report.problems[:1])),
            "evaluation": {},
            "message": _cut(report.message, 300),
        }
    )
    return json.dumps(bare.to_json(), ensure_ascii=False).encode()


def _shortened(problem: Problem) -> Problem:
    cut = {"message": problem.message[:300], "fix": problem.fix[:300]}
    return problem.model_copy(update={**cut, "file": problem.file and problem.file[-200:]})


def _least(problem: Problem) -> Problem:
    """What of a problem has room beside everything else that a report always says."""
    cut = {"message": _cut(problem.message, 600), "fix": _cut(problem.fix, 450)}
    return problem.model_copy(
        update={
            **cut,
            "field": problem.field and _cut(problem.field, 150),
            "file": problem.file and _cut(problem.file, 150, end=True),
        }
    )


def _cut(text: str, size: int, *, end: bool = False) -> str:
    """Return as much of the beginning (or the end) as ``size`` bytes of JSON hold."""
    kept = text[-size:] if end else text[:size]
    while len(json.dumps(kept, ensure_ascii=False).encode()) - 2 > size:
        kept = kept[1:] if end else kept[:-1]
    return kept


def place(environ: Mapping[str, str]) -> Path | None:
    """Return where the message goes; None where nobody reads one."""
    named = environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    log = Path(TERMINATION_LOG)
    return log if log.exists() and os.access(log, os.W_OK) else None


def write(report: TerminationReport, environ: Mapping[str, str]) -> None:
    """Leave the message. Kubernetes' file is a mount, so it is written in place."""
    path = place(environ)
    if path is None:
        return
    if path != Path(TERMINATION_LOG):
        path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(fitted(report))
