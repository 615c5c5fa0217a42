"""What the trainer's processes tell: reports, progress, the end, and the finished model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api import SCHEMA_VERSION
from finetune_api.checkpoint import EXACT, CheckpointRef, FileEntry, Rejected
from finetune_api.document import Digest, Document
from finetune_api.problem import Problem
from finetune_api.resolved import Choices, Stage

Count = Annotated[int, Field(ge=0, le=EXACT)]
Seconds = Annotated[float, Field(ge=0)]
Verdict = Literal["Fits", "DoesNotFit", "Unknown"]


class MemoryPart(Document):
    """One share of the predicted peak."""

    name: Annotated[str, Field(max_length=64)]
    bytes: Count


class MemoryReport(Document):
    """Whether one rank's step fits its accelerator, said before one is requested."""

    verdict: Verdict
    predicted_bytes: Count = 0
    available_bytes: Count | None = None
    """None: the accelerator's memory is not known."""
    how: Literal["traced", "formula"] = "formula"
    parts: tuple[MemoryPart, ...] = ()
    message: Annotated[str, Field(max_length=512)] = ""


class DiskReport(Document):
    """Whether checkpoints, prepared data and the output fit the workspace."""

    verdict: Verdict
    needed_bytes: Count = 0
    free_bytes: Count | None = None
    message: Annotated[str, Field(max_length=512)] = ""


class DataReport(Document):
    """What preparation read and what came of it, for one split."""

    rows: Count
    rows_used: Count
    rows_dropped: Count = 0
    rows_truncated: Count = 0
    rows_split: Count = 0
    duplicates: Count = 0
    sequences: Count
    """After packing."""
    tokens: Count
    trained_tokens: Count
    longest: Count = 0
    """Tokens of the longest row, before truncation."""
    packing_efficiency: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Tokens over ``sequences * maxLength``; 1.0 without packing."""


class PrepareReport(Document):
    """``reports/prepare.json``."""

    schema_version: int = SCHEMA_VERSION
    job_uid: str
    choices: Choices | None = None
    """Absent when the job was refused."""
    train: DataReport | None = None
    validation: DataReport | None = None
    memory: MemoryReport | None = None
    disk: DiskReport | None = None
    tokens_per_step: Count = 0
    trained_tokens_per_step: Count = 0
    rows_per_step: Annotated[float, Field(ge=0)] = 0
    problems: tuple[Problem, ...] = ()
    """Errors and warnings, the gravest first."""
    cached: bool = False
    """True when prepared data of the same fingerprint was there already."""
    seconds: Seconds = 0


class Goodput(Document):
    """Seconds of the time in which accelerators were held, by what they were held for."""

    productive: Seconds = 0
    """Steps that count: not lost to a later resume."""
    starting: Seconds = 0
    saving: Seconds = 0
    evaluating: Seconds = 0
    lost: Seconds = 0
    """Steps that were trained again."""

    @property
    def total(self) -> float:
        """All seconds."""
        return self.productive + self.starting + self.saving + self.evaluating + self.lost

    @property
    def fraction(self) -> float | None:
        """Productive part of all seconds; None before there are any."""
        return self.productive / self.total if self.total else None


class Progress(Document):
    """``reports/progress.json`` and ``/progress`` of rank 0."""

    schema_version: int = SCHEMA_VERSION
    job_uid: str
    attempt: Annotated[int, Field(ge=1)]
    claim: Count
    """0 while the gang has none yet."""
    phase: Literal["loading", "training", "evaluating", "saving", "done"] = "loading"
    step: Count = 0
    total_steps: Count = 0
    epoch: Annotated[float, Field(ge=0)] = 0
    loss: float | None = None
    evaluation: dict[str, float] = Field(default_factory=dict)
    learning_rate: float | None = None
    gradient_norm: float | None = None
    tokens_per_second: Annotated[float, Field(ge=0)] = 0
    """Trained and untrained tokens of the model's input over all ranks."""
    eta_seconds: Annotated[float, Field(ge=0, le=EXACT)] | None = None
    resumed_from: CheckpointRef | None = None
    checkpoint: CheckpointRef | None = None
    """The newest verified one of this claim."""
    goodput: Goodput = Goodput()
    peak_memory_bytes: Count = 0
    time: str = ""


class TerminationReport(Document):
    """The termination message of a process (below 4 KiB) and ``reports/<claim>/end-<node>.json``."""

    schema_version: int = SCHEMA_VERSION
    stage: Stage
    job_uid: str
    attempt: Count = 0
    claim: Count = 0
    node: Count = 0
    exit_code: int
    message: Annotated[str, Field(max_length=512)] = ""
    problems: Annotated[tuple[Problem, ...], Field(max_length=3)] = ()
    step: Count = 0
    loss: float | None = None
    """Of the last step that was logged."""
    checkpoint: CheckpointRef | None = None
    """The newest verified checkpoint that this process knows of."""
    resumed_from: CheckpointRef | None = None
    rejected: Annotated[tuple[Rejected, ...], Field(max_length=3)] = ()
    goodput: Goodput = Goodput()
    peak_memory_bytes: Count = 0
    choices: Choices | None = None
    """Of prepare, so that the operator can freeze them without reading the volume."""
    data: DataReport | None = None
    """Of prepare: the training split."""
    memory: MemoryReport | None = None
    """Of prepare, without its parts."""
    output_digest: Digest | None = None
    """Of publish."""
    evaluation: dict[str, float] = Field(default_factory=dict)


class Verification(Document):
    """What was proved of a merged model."""

    prompts: Count
    max_difference: Annotated[float, Field(ge=0)]
    """Largest absolute difference of logits between the merged model and base plus adapter."""
    tolerance: Annotated[float, Field(ge=0)]
    loaded_in_clean_process: bool
    stops: bool
    """Generation ended with an end-of-turn token on at least one prompt."""


class CompletionManifest(Document):
    """``manifest.json`` of the output: what was left, and how it came about."""

    schema_version: int = SCHEMA_VERSION
    job: str
    job_uid: str
    uri: str
    base_model: str
    base_digest: Digest
    method: str
    objective: str
    merged: bool
    selected_step: Count
    selected_from: CheckpointRef | None = None
    steps: Count
    tokens: Count = 0
    evaluation_before: dict[str, float] = Field(default_factory=dict)
    evaluation_after: dict[str, float] = Field(default_factory=dict)
    verification: Verification | None = None
    files: tuple[FileEntry, ...]
    time: str
