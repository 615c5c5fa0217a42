"""``FineTuneJob``: the object that users write, one module a section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.document import Document, Name
from finetune_api.job.dataset import Dataset
from finetune_api.job.lifecycle import (
    Checkpoint,
    Evaluation,
    Output,
    Recovery,
    Reporting,
    Workspace,
)
from finetune_api.job.method import Method
from finetune_api.job.model import ModelSource
from finetune_api.job.objective import Objective, Sft
from finetune_api.job.parallelism import Parallelism
from finetune_api.job.resources import Resources
from finetune_api.job.training import Training

KIND = "FineTuneJob"
MUTABLE = ("suspend", "recovery", "ttlSecondsAfterFinished", "activeDeadlineSeconds")
"""Fields of ``spec`` that may change after creation; ``workspace.size`` may grow beside them."""


class ProfileRef(Document):
    """The FineTuneProfile to use; absent: the one that is marked as default."""

    name: Name


class JobSpec(Document):
    """What a user asks for, complete: every field that ``resolve`` fills is present.

    A user writes a part of it. A field without a default is required of the user unless it is
    declared ``filled``; what stays None after ``resolve`` is chosen by preparation.
    """

    profile_ref: ProfileRef | None = None
    model: ModelSource
    dataset: Dataset
    method: Method
    objective: Objective = Objective(sft=Sft())
    training: Training = Field(json_schema_extra={"filled": True})
    parallelism: Parallelism = Field(json_schema_extra={"filled": True})
    resources: Resources = Field(json_schema_extra={"filled": True})
    backend: Literal["PyTorchJob", "MPIJob", "TrainJob", "Job"] | None = None
    """Absent: what the cluster has; status says which."""
    managed_by: (
        Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[^\s/]+/[^\s]+$")] | None
    ) = None
    workspace: Workspace = Workspace()
    checkpoint: Checkpoint = Checkpoint()
    recovery: Recovery = Recovery()
    evaluation: Evaluation = Evaluation()
    output: Output = Output()
    reporting: Reporting = Reporting()
    suspend: bool = False
    active_deadline_seconds: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Over all attempts, counting starting and running, not queued or suspended."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=10**9)] | None = None
