"""The start of a gang: choose a checkpoint, verify it on every rank, and take the claim."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.checkpoint import CheckpointRef, Claim, Rejected
from finetune_api.names import Layout
from finetune_api.resolved import StageConfig
from finetune_trainer import methods
from finetune_trainer.checkpoint import claim as claims
from finetune_trainer.checkpoint import verify
from finetune_trainer.checkpoint.gang import Gang

METHOD_STATE = "method.pt"
"""What a method keeps outside its trained weights; absent when that is nothing."""


@dataclass(frozen=True)
class Start:
    """What a gang holds and goes on from; the same on every rank."""

    claim: Claim
    folder: Path | None
    """Of the verified checkpoint, for ``Trainer.train(resume_from_checkpoint=...)``; None: step 0."""

    @property
    def resume(self) -> CheckpointRef | None:
        """The checkpoint that training goes on from."""
        return self.claim.resumes_from

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """Newer checkpoints that could not be used."""
        return self.claim.rejected


def start(config: StageConfig, gang: Gang, *, pod_uid: str) -> Start:
    """Choose what to resume from, verify it, and take the claim. Every rank calls this.

    Rank 0 walks the lineage and looks at manifests and sizes; then each rank reads and hashes the
    files that it will load. One rank that finds damage rejects the checkpoint for all.

    Raises:
        StageError: on every rank alike; 15 when work would be lost silently.
    """
    if config.attempt is None:
        raise ValueError("the configuration has no attempt: it is not one of a train stage")
    attempt, layout = config.attempt, Layout(Path(config.mounts.workspace))
    search = verify.Search(layout, verify.expected(config), gang.world_size, attempt.known)
    found = _choose(search, gang)

    def take() -> Claim:
        search.settle(found)
        return claims.take(
            layout,
            job_uid=config.job.uid,
            attempt=attempt.number,
            pod_uid=pod_uid,
            resumes_from=found.ref if found else None,
            rejected=search.rejected,
        )

    return Start(gang.led(take), found.folder if found else None)


def _choose(search: verify.Search, gang: Gang) -> verify.Found | None:
    candidates = search.candidates()
    while found := gang.led(lambda: next(candidates, None)):
        damage = next(filter(None, gang.all(_damage(found, gang.rank))), "")
        if not damage:
            return found
        search.reject(found.folder, found.ref.step, damage)
    return None


def _damage(found: verify.Found, rank: int) -> str:
    """What is wrong with the files that this rank reads: rank 0's and its own."""
    try:
        verify.check_contents(found.folder, found.manifest, {0, rank})
    except verify.Unusable as error:
        return str(error)
    return ""


def method_state(model: Any, config: StageConfig, folder: Path) -> None:
    """Put back what the job's method keeps outside its trained weights."""
    import torch

    path = folder / METHOD_STATE
    saved = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else {}
    methods.restore(model, config, saved)
