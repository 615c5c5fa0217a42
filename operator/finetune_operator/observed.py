"""What an executor saw of a job: processes, reports, checkpoints. Data without a Kubernetes word.

The operator fills it from the API server, the command line from processes and folders. Nothing in
it is a decision.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from finetune_api.checkpoint import CheckpointRef, Claim
from finetune_api.job import JobSpec
from finetune_api.job.lifecycle import Recovery
from finetune_api.reports import CompletionManifest, PrepareReport, Progress, TerminationReport
from finetune_api.resolved import Choices
from finetune_api.status import Child

EndReason = Literal[
    "OOMKilled", "EvictedOwnLimits", "DisruptionTarget", "Evicted", "Deleted", "NodeLost"
]
"""Why something outside ended a process. EvictedOwnLimits: it used more than it had asked for."""


@dataclass(frozen=True)
class ProcessEnd:
    """How one process of a child ended: a supervisor and the ranks below it."""

    name: str
    at: datetime
    exit_code: int | None = None
    """As a shell counts: 137 for SIGKILL, 143 for SIGTERM. None: nobody saw it end."""
    reason: EndReason | None = None
    message: str = ""
    """Who or what ended it, in the words of the platform."""
    report: TerminationReport | None = None
    undated: bool = False
    """Nobody says when it ended; ``at`` is when it began, at the latest."""


@dataclass(frozen=True)
class Waiting:
    """Why a child does not run yet, collected from its processes."""

    reason: str
    """CamelCase, such as WaitingForRoom or ImagePullFailed."""
    message: str = ""


@dataclass(frozen=True)
class ChildState:
    """One child of the job: a stage's try, made of one process a node."""

    name: str
    uid: str
    processes: int = 1
    """How many it is to have."""
    running: int = 0
    """How many run now."""
    ends: tuple[ProcessEnd, ...] = ()
    over: bool = False
    """Every process is gone or has ended, and no other will come."""
    active_since: datetime | None = None
    """When it left the queue; None while it is queued."""
    ran: bool = False
    """All processes ran at the same time, at least once."""
    waiting: Waiting | None = None
    roomless: Waiting | None = None
    """Why some of its processes never ran, where they only waited for room; kept beyond their end."""
    stopped_at: datetime | None = None
    """When it, or the first of its processes, was told to end."""
    told_at: datetime | None = None
    """When the last was told of those that may still run. None while one of them was not, or while
    another may be started."""
    replaced: str = ""
    """A process of the gang whose place another has taken: the gang cannot be whole any more."""
    withdrawn: bool = False
    """Its processes were ended because it was suspended from outside, and none is left."""
    held: bool = False
    """It is suspended, and not by a queue: who did that lets it go on."""
    emptied: str = ""
    """Where it is held by a size of 0: the platform's name of what holds that."""
    platform_status: str = ""
    """The child's own word for its state."""

    @property
    def failed_at(self) -> datetime | None:
        """When the first of its processes ended other than with success."""
        ends = [end.at for end in self.ends if end.exit_code != 0]
        return min(ends) if ends else None


@dataclass(frozen=True)
class Live:
    """The fields of ``spec`` that may change while the job runs."""

    suspend: bool = False
    recovery: Recovery = field(default_factory=Recovery)
    active_deadline_seconds: int | None = None
    ttl_seconds_after_finished: int | None = None
    generation: int = 0

    @classmethod
    def of(cls, spec: JobSpec, generation: int = 0) -> Live:
        """Take them from the object as it is now."""
        return cls(
            suspend=spec.suspend,
            recovery=spec.recovery,
            active_deadline_seconds=spec.active_deadline_seconds,
            ttl_seconds_after_finished=spec.ttl_seconds_after_finished,
            generation=generation,
        )


@dataclass(frozen=True)
class WorkspaceState:
    """The volume that holds the job's folder."""

    shared: bool = False
    """Several nodes may write at the same time (ReadWriteMany)."""
    problem: Waiting | None = None
    """Why it cannot be used now; None when it can."""


@dataclass(frozen=True)
class Kinds:
    """What this executor's children are called, for status alone."""

    prepare: str = "Process"
    train: str = "Process"
    publish: str = "Process"


@dataclass(frozen=True)
class Observed:
    """Everything that ``account`` and ``plan`` look at beside the ledger."""

    live: Live
    children: tuple[ChildState, ...] = ()
    """All of this job that exist, those of earlier attempts included."""
    report: PrepareReport | None = None
    """Of a preparation that succeeded, while its pod is remembered."""
    choices: Choices | None = None
    """The ledger's, once it has them; else the report's."""
    progress: Progress | None = None
    claim: Claim | None = None
    """The newest one of the attempt that runs."""
    checkpoint: CheckpointRef | None = None
    """The newest one that the executor itself knows to be verified."""
    published: CompletionManifest | None = None
    workspace: WorkspaceState = WorkspaceState()
    kinds: Kinds = Kinds()

    def child(self, wanted: Child | None) -> ChildState | None:
        """Return the child that the ledger speaks of, if it exists.

        One with the right name and another uid is somebody else's, or was made again behind our
        back: it is not the child that the ledger speaks of.
        """
        if wanted is None:
            return None
        for child in self.children:
            if child.name == wanted.name and wanted.uid in ("", child.uid):
                return child
        return None

    def strangers(self, wanted: Child | None) -> tuple[ChildState, ...]:
        """Return the children that are not the ledger's and whose processes may still run."""
        own = self.child(wanted)
        return tuple(child for child in self.children if child is not own and not child.over)
