"""What of a status is news: worth a write, and what it says of changes without effect. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_api.problem import Problem
from finetune_api.status import JobStatus
from finetune_operator.refusal import words

_SOFT = frozenset({"progress", "memory", "summary"})
"""What moves with every step: written with the progress, and not by itself."""


def noted(status: JobStatus, problems: Sequence[Problem]) -> JobStatus:
    """Return a status whose condition Accepted says which changes have no effect, and why."""
    if not problems:
        return status
    _, text = words(problems)
    said = tuple(
        one.model_copy(update={"message": text}) if one.type == "Accepted" else one
        for one in status.conditions
    )
    return status.model_copy(update={"conditions": said})


def is_worth_writing(before: JobStatus, after: JobStatus) -> bool:
    """Tell whether a status says more than the one that is there.

    Loss, rate and ETA go with the step: they are no reason by themselves.
    """
    if before == after:
        return False
    if _hard(before) != _hard(after):
        return True
    old, new = before.progress, after.progress
    return new is not None and (old is None or old.step != new.step)


def _hard(status: JobStatus) -> dict[str, Any]:
    found = status.model_dump(exclude=set(_SOFT))
    words_ = status.summary
    found["summary"] = (
        words_.reason,
        words_.gpus,
        words_.restarts,
        words_.model,
        words_.method,
    )
    found["memory"] = None if status.memory is None else status.memory.verdict
    return found
