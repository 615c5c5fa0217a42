"""What to do next: data that an executor carries out, without a Kubernetes word.

Every step may be carried out twice: starting what exists and stopping what has ended change
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetune_api.resolved import Attempt
from finetune_api.status import Child, ConditionType, Failure, FailureClass


@dataclass(frozen=True)
class StartPrepare:
    """Start the preparation under the name that the ledger holds."""

    child: Child


@dataclass(frozen=True)
class StartAttempt:
    """Start one gang of training processes."""

    child: Child
    attempt: Attempt


@dataclass(frozen=True)
class StartPublish:
    """Start publishing."""

    child: Child


@dataclass(frozen=True)
class Stop:
    """Tell every process of a child to save and end, within the job's grace period."""

    child: str
    reason: FailureClass
    message: str
    look_again: datetime | None = None


@dataclass(frozen=True)
class Wait:
    """Nothing to do before ``until``, or before something is seen (None)."""

    until: datetime | None
    condition: ConditionType
    """The condition that says why."""
    reason: str
    message: str


@dataclass(frozen=True)
class Finish:
    """The job has ended."""

    succeeded: bool
    failure: Failure | None = None
    expires: datetime | None = None
    """When the object may be removed; None: never."""
    expired: bool = False
    """It is time to remove it."""


Step = StartPrepare | StartAttempt | StartPublish | Stop | Wait | Finish
