"""Sections of a job's life: workspace, checkpoints, recovery, evaluation, output, reporting."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.document import Document, Duration, Fraction, Name, Period, Size, Word
from finetune_api.job.training import Batch, Steps
from finetune_api.source import CLAIM_PATTERN, SecretKeyRef

WORKSPACE_SIZE = "50Gi"
"""Of a claim that is made for a job that names no size."""


class Workspace(Document):
    """Prepared data, checkpoints and logs: an existing claim, or one that is made."""

    claim_name: Name | None = None
    size: Size | None = None
    storage_class_name: Name | None = None
    retain: bool = True
    """Keep a claim that was made when the job is deleted."""


class Checkpoint(Document):
    """How much work may be lost, and what not losing it may cost."""

    max_lost_work: Duration = "10m"
    max_overhead: Fraction = 0.05
    """Part of the training time that saving may take; it wins over ``maxLostWork``."""
    every_steps: Steps | None = None
    """A fixed cadence instead of the measured one."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    grace_period_seconds: Annotated[int, Field(ge=1, le=86_400)] = 120


class Recovery(Document):
    """What is retried."""

    max_failures: Annotated[int, Field(ge=0, le=1000)] = 3
    max_preemptions: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Absent: no limit."""
    start_timeout: Period = "30m"
    retry_generation: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Raise it to try a failed job again from the phase that failed."""


class EarlyStopping(Document):
    """Stop when the metric no longer improves."""

    patience: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Evaluations without an improvement."""
    min_delta: Annotated[float, Field(ge=0, le=1e6)] = 0.0


class Gate(Document):
    """What the model has to reach before it counts as a success."""

    metric: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)] = "loss"
    must_improve_by: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Against the model before training, in the unit of the metric."""


class Evaluation(Document):
    """Evaluation on the validation data."""

    every_steps: Steps | None = None
    """Absent: ten times over the job."""
    max_rows: Annotated[int, Field(ge=1, le=10**9)] | None = None
    batch_size: Batch | None = None
    metrics: Annotated[
        list[Literal["loss", "perplexity", "accuracy", "f1", "rouge", "exact_match"]],
        Field(min_length=1, max_length=16),
    ] = ["loss"]
    early_stopping: EarlyStopping | None = None
    gate: Gate | None = None


class Output(Document):
    """The model that is left."""

    uri: (
        Annotated[
            str,
            StringConstraints(pattern=CLAIM_PATTERN, max_length=1024),
        ]
        | None
    ) = None
    """pvc://claim/path; it is never overwritten. Absent: in the workspace."""
    merge: bool = True
    """Merge an adapter into the base. The adapter is always kept beside it."""
    select: Literal["best", "last"] = "best"
    """best: by evaluation loss, the last where there was no evaluation."""


class TensorBoard(Document):
    """Event files under the workspace's logs."""


class Wandb(Document):
    """Weights & Biases."""

    project: Word
    entity: Word | None = None
    api_key_secret_ref: SecretKeyRef


class Reporting(Document):
    """Where curves are sent beside the job's own."""

    tensorboard: TensorBoard | None = None
    wandb: Wandb | None = None
