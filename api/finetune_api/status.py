"""``status`` of a FineTuneJob: a ledger that cannot be recomputed, and what is derived from it."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from finetune_api.checkpoint import CheckpointRef
from finetune_api.document import Digest, Document
from finetune_api.reports import Count, Goodput, Seconds, Verdict
from finetune_api.resolved import Choices, Chosen

Phase = Literal[
    "Pending",
    "Preparing",
    "Queued",
    "Starting",
    "Running",
    "Recovering",
    "Publishing",
    "Suspended",
    "Succeeded",
    "Failed",
]
ConditionType = Literal[
    "Accepted",
    "Prepared",
    "Queued",
    "Running",
    "Recovering",
    "Suspended",
    "Succeeded",
    "Failed",
    "Finished",
]
FailureClass = Literal[
    "InvalidConfig",
    "InvalidData",
    "DoesNotFit",
    "ModelUnavailable",
    "NonFiniteLoss",
    "StorageFull",
    "CheckpointUnusable",
    "GateNotMet",
    "OutOfMemory",
    "Evicted",
    "Crashed",
    "CommunicationLost",
    "Preempted",
    "LostInfrastructure",
    "Fenced",
    "Stopped",
    "StartTimeout",
    "DeadlineExceeded",
    "NoProgress",
    "TooManyPreemptions",
    "NotAccepted",
]
Time = Annotated[str, Field(max_length=64)]


class Condition(Document):
    """As in every Kubernetes object; a list map keyed by type."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(max_length=128, pattern=r"^[A-Z][A-Za-z0-9]*$")]
    message: Annotated[str, Field(max_length=1024)] = ""
    observed_generation: Count = 0
    last_transition_time: Time


class ResolvedRef(Document):
    """Where the resolved job is kept, and by what it is known again."""

    config_map: Annotated[str, Field(max_length=253)] = ""
    digest: Digest
    """Of the resolved job and its queue."""


class Child(Document):
    """The object that runs now; an empty uid means that it is about to be created."""

    kind: Annotated[str, Field(max_length=64)]
    name: Annotated[str, Field(max_length=253)]
    uid: Annotated[str, Field(max_length=64)] = ""


class Failure(Document):
    """The newest end that was not a success."""

    class_: Annotated[FailureClass, Field(alias="class")]
    code: Annotated[str, Field(max_length=64)]
    message: Annotated[str, Field(max_length=1024)]
    fix: Annotated[str, Field(max_length=1024)] = ""
    exit_code: int | None = None
    pod: Annotated[str, Field(max_length=253)] = ""
    time: Time


class JobProgress(Document):
    """A summary of the newest ``Progress``."""

    step: Count
    total_steps: Count
    epoch: Annotated[float, Field(ge=0)] = 0
    loss: float | None = None
    tokens_per_second: Annotated[float, Field(ge=0)] = 0
    eta_seconds: Seconds | None = None


class Resume(Document):
    """How an attempt after the first began."""

    attempt: Annotated[int, Field(ge=2)]
    cause: FailureClass
    stopped_at: Count
    """The last step that the attempt before is known to have reached."""
    from_step: Count
    digest: Digest | None = None
    """None: from step 0, nothing was saved before."""
    lost_steps: Count = 0
    rejected: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=3)] = ()
    """Newer checkpoints that did not verify, with the reason."""
    time: Time


class DatasetStatus(Document):
    """A summary of the prepared data."""

    rows: Count
    dropped: Count = 0
    sequences: Count
    tokens: Count
    trained_tokens: Count
    fingerprint: Digest


class MemoryStatus(Document):
    """Predicted and seen memory of one rank."""

    verdict: Verdict
    predicted_bytes: Count = 0
    observed_bytes: Count = 0


class OutputStatus(Document):
    """The model that was left."""

    uri: Annotated[str, Field(max_length=1024)]
    digest: Digest | None = None
    evaluation: dict[str, float] = Field(default_factory=dict, max_length=32)


class Summary(Document):
    """Short words for the columns of ``kubectl get``; empty where there is nothing to say."""

    reason: Annotated[str, Field(max_length=128)] = ""
    """Of the condition that explains the phase."""
    progress: Annotated[str, Field(max_length=16)] = ""
    """Part of the steps that is done: ``45%``."""
    loss: Annotated[str, Field(max_length=32)] = ""
    eta: Annotated[str, Field(max_length=32)] = ""
    gpus: Count | None = None
    """Accelerators that are held now."""
    restarts: Count | None = None
    """Attempts after the first, but for those that its own user stopped and let go on."""
    model: Annotated[str, Field(max_length=256)] = ""
    method: Annotated[str, Field(max_length=64)] = ""


class Ledger(Document):
    """What cannot be recomputed: written before anything is done that it speaks of."""

    attempt: Count = 0
    """Number of the newest attempt; 0 before the first."""
    child: Child | None = None
    failures: Count = 0
    preemptions: Count = 0
    suspensions: Count = 0
    """Attempts that the job's own user ended with ``spec.suspend``."""
    attempts_without_progress: Count = 0
    """Attempts in a row that left no newer verified checkpoint, or tries of preparation or
    publishing in a row that failed."""
    interrupted_starts: Count = 0
    """Attempts of those without progress that were ended from outside before their first step."""
    memory_halvings: Annotated[int, Field(ge=0, le=2)] = 0
    """How often the micro batch was halved after an out-of-memory."""
    last_failure: Failure | None = None
    checkpoint: CheckpointRef | None = None
    """The newest one that is known to be verified."""
    resumes: Annotated[tuple[Resume, ...], Field(max_length=10)] = ()
    active_seconds: Seconds = 0
    """Starting and running over all attempts that have ended."""
    goodput: Goodput = Goodput()
    retry_generation: Count = 0
    """The newest ``spec.recovery.retryGeneration`` that was acted upon."""
    prepared: bool = False
    choices: Choices | None = None
    """What preparation chose, as every attempt is told it; the reasons are in ``chosen``."""
    trained: bool = False
    tries: Count = 0
    """Tries of preparation or publishing, whichever runs now, the present one included."""
    stopping: FailureClass | None = None
    """Why the child that runs is to end: written before it is told so."""
    not_before: Time | None = None
    """The next attempt must not start before this time."""
    outcome: Literal["Succeeded", "Failed"] | None = None
    finished_at: Time | None = None


class JobStatus(Ledger):
    """``status`` of a FineTuneJob: the ledger and what is derived from it.

    Each part is bounded. Where all of them are full the operator cuts texts until the whole has
    16 kB.
    """

    phase: Phase | None = None
    summary: Summary = Summary()
    observed_generation: Count = 0
    conditions: Annotated[
        tuple[Condition, ...], Field(max_length=len(get_args(ConditionType)))
    ] = ()
    resolved: ResolvedRef | None = None
    trainer_image: Annotated[str, Field(max_length=512)] = ""
    backend: Annotated[str, Field(max_length=64)] = ""
    trainer_status: Annotated[str, Field(max_length=64)] = ""
    """The child's own word for its state."""
    progress: JobProgress | None = None
    dataset: DatasetStatus | None = None
    memory: MemoryStatus | None = None
    chosen: Annotated[tuple[Chosen, ...], Field(max_length=32)] = ()
    output: OutputStatus | None = None
