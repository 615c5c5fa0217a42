"""What operator and command line hand to the trainer: resolved once, never changed afterwards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api import SCHEMA_VERSION
from finetune_api.checkpoint import CheckpointRef
from finetune_api.document import Digest, Document, digest_of
from finetune_api.job import JobSpec

Stage = Literal["prepare", "train", "publish", "generate"]
Origin = Literal["built-in", "profile", "user"]


class Chosen(Document):
    """A value that nobody wrote, and why it is what it is."""

    field: Annotated[str, Field(max_length=256)]
    value: Annotated[str, Field(max_length=256)]
    reason: Annotated[str, Field(max_length=512)]


class ResolvedJob(Document):
    """What training means, fixed at acceptance. Its digest is in status."""

    schema_version: int = SCHEMA_VERSION
    name: str
    namespace: str
    uid: str
    trainer_image: str = ""
    """Digest-pinned; empty where there is no cluster."""
    spec: JobSpec
    origins: dict[str, Origin] = Field(default_factory=dict)
    """Path in ``spec`` (``training.learningRate``) to the layer that held its value. A path that
    is not named comes from the built-in layer."""
    chosen: tuple[Chosen, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of the canonical form."""
        return digest_of(self.to_json())


class Choices(Document):
    """What preparation chose after it saw model and data; frozen into every attempt."""

    schema_version: int = SCHEMA_VERSION
    fingerprint: Digest
    """Of everything that shapes the prepared data."""
    model_path: Annotated[str, Field(max_length=2048)]
    """Folder of the materialised base model, relative to the job's folder, or ``pvc://...``."""
    model_digest: Digest
    tokenizer_digest: Digest
    train_sequences: Annotated[int, Field(ge=1)]
    """Sequences of one epoch, as the model sees them."""
    validation_sequences: Annotated[int, Field(ge=0)] = 0
    packing: bool
    global_batch_size: Annotated[int, Field(ge=1)]
    micro_batch_size: Annotated[int, Field(ge=1)]
    micro_batch_chosen: bool
    """True where it was ours to choose, so that it may be halved after an out-of-memory."""
    steps_per_epoch: Annotated[int, Field(ge=1)]
    total_steps: Annotated[int, Field(ge=1)]
    evaluation_every_steps: Annotated[int, Field(ge=1)] | None = None
    """None: no validation data."""
    chosen: Annotated[tuple[Chosen, ...], Field(max_length=32)] = ()


class Attempt(Document):
    """One try at training: where it runs and what it resumes from."""

    number: Annotated[int, Field(ge=1)]
    nodes: Annotated[int, Field(ge=1)]
    processes_per_node: Annotated[int, Field(ge=1)]
    micro_batch_size: Annotated[int, Field(ge=1)]
    """The choice of preparation, or half of it after an out-of-memory."""
    known: CheckpointRef | None = None
    """The newest checkpoint that status saw verified. Where it is found damaged, the one before it
    is used and the claim says so. Where it is gone without a trace and nothing newer is usable, or
    nothing is usable at all, the attempt ends with 15 instead of starting at step 0."""

    @property
    def world_size(self) -> int:
        """Ranks over all nodes."""
        return self.nodes * self.processes_per_node


class Mounts(Document):
    """Where this process finds its folders."""

    workspace: str
    """The job's own folder (``names.Layout``)."""
    volumes: dict[str, str] = Field(default_factory=dict)
    """Claim name to folder."""


class StageConfig(Document):
    """The one configuration file of a process of the trainer."""

    schema_version: int = SCHEMA_VERSION
    stage: Stage
    job: ResolvedJob
    mounts: Mounts
    choices: Choices | None = None
    """Absent for prepare."""
    attempt: Attempt | None = None
    """For train alone."""

    @property
    def digest(self) -> str:
        """Digest of the canonical form; the process is started with it and refuses another."""
        return digest_of(self.to_json())
