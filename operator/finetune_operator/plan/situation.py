"""One look at a job: what every stage of the plan reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.checkpoint import CheckpointRef
from finetune_api.names import attempt_name, prepare_name, publish_name
from finetune_api.quantity import parse_duration
from finetune_api.resolved import ResolvedJob, Stage
from finetune_api.status import Child, Ledger
from finetune_operator.observed import ChildState, Observed

AFTER_GRACE = 60.0
"""Seconds after the grace period until a process that gives no sign counts as lost."""


@dataclass(frozen=True)
class Situation:
    """Job, ledger, what was seen, and the time (aware, UTC)."""

    job: ResolvedJob
    ledger: Ledger
    observed: Observed
    now: datetime

    @property
    def stage(self) -> Stage:
        """The stage that the ledger has reached."""
        if not self.ledger.prepared:
            return "prepare"
        return "publish" if self.ledger.trained else "train"

    @property
    def child(self) -> ChildState | None:
        """The ledger's child, if it exists."""
        return self.observed.child(self.ledger.child)

    @property
    def alive(self) -> ChildState | None:
        """The ledger's child, if its processes may still run."""
        child = self.child
        return None if child is None or child.over else child

    def given_up(self, child: ChildState) -> datetime | None:
        """When the ledger's child that was told to end, or has lost a process, has ended for it.

        It was told by the clock of the API server, and what a process says of its end goes by that
        of its node, so the latter counts only where nobody was told yet.
        """
        since = child.stopped_at or child.failed_at
        return later(since, self._patience) if since is not None else None

    def lost_at(self, child: ChildState) -> datetime | None:
        """When what is left of a child counts as lost; None while some of it was not told to end."""
        return None if child.told_at is None else later(child.told_at, self._patience)

    @property
    def _patience(self) -> float:
        return self.job.spec.checkpoint.grace_period_seconds + AFTER_GRACE

    @property
    def deadline(self) -> datetime | None:
        """When ``activeDeadlineSeconds`` will have passed, if the attempt goes on."""
        limit = self.observed.live.active_deadline_seconds
        child = self.child
        if limit is None or self.stage != "train" or child is None or child.active_since is None:
            return None
        return later(child.active_since, max(0.0, limit - self.ledger.active_seconds))

    @property
    def start_deadline(self) -> datetime | None:
        """When an attempt whose processes do not all run is given up; None once one has failed.

        Of a process that has ended it is not always known whether it ran: ``given_up`` says how long
        the others are waited for.
        """
        child = self.child
        if self.stage != "train" or child is None or child.ran or child.active_since is None:
            return None
        if self.given_up(child) is not None:
            return None
        return later(child.active_since, parse_duration(self.observed.live.recovery.start_timeout))

    def with_ledger(self, **changes: Any) -> Situation:
        """Return the same look at another ledger."""
        return replace(self, ledger=self.ledger.model_copy(update=changes))

    def named(self, stage: Stage, number: int) -> Child:
        """Name the child of a stage's try (counted from 1); it is about to be started."""
        name = self.job.name
        if stage == "train":
            return Child(kind=self.observed.kinds.train, name=attempt_name(name, number))
        again = f"-{number}" if number > 1 else ""
        if stage == "prepare":
            return Child(kind=self.observed.kinds.prepare, name=prepare_name(name) + again)
        return Child(kind=self.observed.kinds.publish, name=publish_name(name) + again)


def later(at: datetime, seconds: float) -> datetime:
    """Return a time some seconds after another, and the last there is where that is too late."""
    try:
        return at + timedelta(seconds=seconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def text_of(at: datetime) -> str:
    """Return a time as status holds it (RFC 3339, UTC, whole seconds rounded up)."""
    whole = at.replace(microsecond=0)
    if at.microsecond:
        whole = later(whole, 1)
    return whole.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_of(text: str | None) -> datetime | None:
    """Return a time from status; None where there is none or it is not one."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def claim_of(ref: CheckpointRef) -> int:
    """Return the claim that a checkpoint belongs to (``checkpoints/<claim>/step-<n>``)."""
    parts = ref.path.split("/")
    text = parts[1] if len(parts) > 2 else ""
    return int(text) if text.isascii() and text.isdigit() else 0


def newest(*refs: CheckpointRef | None) -> CheckpointRef | None:
    """Return the newest checkpoint: of the newest claim, then of the highest step."""
    there = [ref for ref in refs if ref is not None]
    return max(there, key=lambda ref: (claim_of(ref), ref.step), default=None)
