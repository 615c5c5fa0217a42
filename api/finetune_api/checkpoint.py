"""Checkpoints and the claims that fence them.

A checkpoint is a folder that exists if and only if its ``manifest.json`` verifies: the manifest is
written last, by rank 0, after every rank has written, flushed and hashed its own files.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_api import SCHEMA_VERSION
from finetune_api.document import Digest, Document, digest_of

EXACT = 2**53
"""Up to it every reader of JSON has the same whole numbers; the API server takes little more."""
Step = Annotated[int, Field(ge=0, le=EXACT)]


class CheckpointRef(Document):
    """A checkpoint, named so that no other can be taken for it."""

    step: Step
    path: Annotated[str, Field(max_length=1024)]
    """Relative to the job's folder: ``checkpoints/<claim>/step-<n>``."""
    digest: Digest
    """Of the manifest."""
    time: Annotated[str, Field(max_length=64)] = ""
    """When it was committed, RFC 3339."""
    world_size: Annotated[int, Field(ge=1, le=EXACT)] = 1


class Claim(Document):
    """``claims/<sequence>.json``: the right of one gang to write, until a higher one exists.

    Created by rank 0 with O_EXCL under the next free number.
    """

    schema_version: int = SCHEMA_VERSION
    sequence: Annotated[int, Field(ge=1)]
    job_uid: str
    attempt: Annotated[int, Field(ge=1)]
    pod_uid: str
    """Of rank 0's pod; without a cluster a random id of the process."""
    resumes_from: CheckpointRef | None = None
    """None: from step 0."""
    rejected: tuple[Rejected, ...] = ()
    """Newer checkpoints that were looked at and found unusable."""
    time: str


class Rejected(Document):
    """A checkpoint that cannot be used, and why."""

    path: Annotated[str, Field(max_length=1024)]
    step: Step
    reason: Annotated[str, Field(max_length=512)]


class FileEntry(Document):
    """One file of a checkpoint or an output."""

    path: Annotated[str, Field(max_length=1024)]
    """Relative to the folder, with forward slashes."""
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    rank: Annotated[int, Field(ge=0)] = 0
    """The rank that wrote it, and that reads and verifies it again."""


class Manifest(Document):
    """``manifest.json`` of a checkpoint."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["checkpoint", "best"] = "checkpoint"
    job_uid: str
    claim: Annotated[int, Field(ge=1)]
    attempt: Annotated[int, Field(ge=1)]
    step: Step
    epoch: Annotated[float, Field(ge=0)]
    world_size: Annotated[int, Field(ge=1)]
    engine: str
    """ddp, fsdp, zero-1, zero-2 or zero-3."""
    method: str
    precision: str
    global_batch_size: Annotated[int, Field(ge=1)]
    micro_batch_size: Annotated[int, Field(ge=1)]
    seed: int
    dataset_fingerprint: Digest
    model_digest: Digest
    tokenizer_digest: Digest
    evaluation: dict[str, float] = Field(default_factory=dict)
    """Of this step, where it was evaluated."""
    reason: Literal["cadence", "signal", "best", "end"] = "cadence"
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the libraries that wrote it."""
    files: tuple[FileEntry, ...]
    time: str

    @property
    def digest(self) -> str:
        """Digest of the canonical form."""
        return digest_of(self.to_json())


def parse_manifest(data: Any) -> Manifest:
    """Validate a manifest; raises ``pydantic.ValidationError``."""
    return Manifest.model_validate(data)


Claim.model_rebuild()
