"""How the processes of played pods go, and what they leave as their termination message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.checkpoint import CheckpointRef
from finetune_api.reports import DataReport, TerminationReport
from harness.simulation import make_choices, ref

DATA = DataReport(
    rows=90, rows_used=88, rows_dropped=2, sequences=80, tokens=1000, trained_tokens=310
)


@dataclass(frozen=True)
class Run:
    """How the process of one pod goes."""

    seconds: float = 0.0
    """For how long it runs before it ends; None of the states is skipped."""
    exit_code: int = 0
    forever: bool = False
    step: int = 60
    checkpoint: int | None = 60


Script = Callable[[str, int, int], Run]
"""(stage, attempt, node) -> what happens."""


def first_try_of(held: str) -> Script:
    """Let the first try of one stage go on until it is told to end, and all else end well."""
    return lambda stage, attempt, node: Run(forever=stage == held and attempt == 1)


def trains_forever(stage: str, attempt: int, node: int) -> Run:
    """Let training go on until it is told to end, and all else end well."""
    del attempt, node
    return Run(forever=stage == "train")


def said(
    stage: str, uid: str, attempt: int, node: int, run: Run, began: CheckpointRef | None = None
) -> TerminationReport:
    """Return what the trainer would leave as its termination message."""
    saved = ref(max(attempt, 1), run.checkpoint) if run.checkpoint else None
    return TerminationReport(
        stage=stage,  # type: ignore[arg-type]
        job_uid=uid,
        attempt=attempt if stage == "train" else 0,
        claim=attempt if stage == "train" else 0,
        node=node,
        exit_code=run.exit_code,
        step=run.step if stage != "prepare" else 0,
        checkpoint=saved if stage == "train" else None,
        resumed_from=began,
        choices=make_choices() if stage == "prepare" and run.exit_code == 0 else None,
        data=DATA if stage == "prepare" and run.exit_code == 0 else None,
        output_digest="sha256:" + "b" * 64 if stage == "publish" else None,
        evaluation={"loss": 1.5} if stage == "publish" else {},
    )
