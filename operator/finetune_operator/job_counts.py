"""How many jobs there are, by phase and by the reason of what explains it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, get_args

from finetune_api.reasons import ACTION, NORMAL
from finetune_api.status import FailureClass, Phase

NOT_ACCEPTED = "NotAccepted"
OTHER = "Other"
_PHASES = frozenset(get_args(Phase))
_REASONS = frozenset({"", *NORMAL, *ACTION, *get_args(FailureClass)})

Kind = tuple[str, str]
"""Phase and reason."""


def kind_of(body: Mapping[str, Any]) -> Kind:
    """Return under what a job counts, from words that are known beforehand.

    The reason of one that is not accepted can be the code of any problem: all of them count
    together. Others wrote the status too, perhaps, so that nothing is taken for granted in it.
    """
    status = _mapping(body.get("status"))
    phase = str(status.get("phase") or "Pending")
    if phase not in _PHASES:
        phase = OTHER
    conditions = status.get("conditions")
    for condition in map(_mapping, conditions if isinstance(conditions, list) else ()):
        if condition.get("type") == "Accepted" and condition.get("status") == "False":
            return phase, NOT_ACCEPTED
    reason = str(_mapping(status.get("summary")).get("reason") or "")
    return phase, reason if reason in _REASONS else OTHER


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


class JobCounts:
    """Jobs as they were last listed: numbers alone, and nothing of a single job.

    None is as new as its job. What a look writes is not counted, nor is a job that was deleted
    since, so that a look costs nothing and nothing can be counted twice.
    """

    def __init__(self) -> None:
        """Begin with nothing listed."""
        self._of: dict[str | None, Counter[Kind]] = {}

    def listed(self, namespace: str | None, found: Counter[Kind]) -> None:
        """Take what a whole list of a namespace, or of all of them, has found."""
        self._of[namespace] = found

    def forget(self, namespace: str | None) -> None:
        """Count no jobs of a namespace that cannot be listed."""
        self._of.pop(namespace, None)

    def total(self) -> Counter[Kind]:
        """Return the number of jobs of each kind that there are."""
        total: Counter[Kind] = Counter()
        for found in self._of.values():
            total.update(found)
        return total
