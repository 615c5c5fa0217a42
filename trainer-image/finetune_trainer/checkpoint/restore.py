"""The start of a gang: choose a checkpoint, verify it on every rank, and take the claim."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    Reading may take minutes, in which an older gang that is not fenced yet goes on saving, and
    deletes what is too old for it. So rank 0 looks again once the claim is there.

    Raises:
        StageError: on every rank alike; 15 when work would be lost silently.
    """
    if config.attempt is None:
        raise ValueError("the configuration has no attempt: it is not one of a train stage")
    attempt, layout = config.attempt, Layout(Path(config.mounts.workspace))
    search = verify.Search(layout, verify.expected(config), gang.world_size, attempt.known)

    def take(found: verify.Found | None, rejected: tuple[Rejected, ...]) -> Claim:
        return claims.take(
            layout,
            job_uid=config.job.uid,
            attempt=attempt.number,
            pod_uid=pod_uid,
            resumes_from=found.ref if found else None,
            rejected=rejected,
        )

    return _confirmed(search, _choose(search, gang), gang, take)


Take = Callable[[verify.Found | None, tuple[Rejected, ...]], Claim]
"""Takes a claim that goes on from a checkpoint, and names the newer ones that cannot be used."""


def _choose(search: verify.Search, gang: Gang) -> verify.Found | None:
    candidates = search.candidates()
    while found := gang.led(lambda: next(candidates, None)):
        damage = _damage(found, gang)
        if not damage:
            return found
        search.reject_contents(found, damage)
    return None


def _confirmed(search: verify.Search, chosen: verify.Found | None, gang: Gang, take: Take) -> Start:
    """Take the claim for ``chosen``, or for what is the newest once nobody else can commit.

    Where something newer has come, the next claim names it before it is read: were this process
    to end meanwhile, whoever comes next would still find all that was committed in its lineage.
    So does the next claim where something newer has come that cannot be used.
    """

    def first() -> Claim:
        search.settle(chosen)
        return take(chosen, search.rejected)

    claim = gang.led(first)
    again = search.again(below=claim.sequence)
    candidates = again.candidates()

    def follow() -> tuple[verify.Found | None, Claim]:
        found = again.not_before(chosen, next(candidates, None))
        same = (found.ref if found else None) == claim.resumes_from
        if found is None or not same:
            again.settle(found, chosen)
        if same and {item.path for item in claim.rejected}.issuperset(
            item.path for item in again.rejected
        ):
            return found, claim
        claims.fence(again.layout, claim.sequence)
        return found, take(found, again.rejected)

    while True:
        found, claim = gang.led(follow)
        if found is None or (chosen and found.ref == chosen.ref):
            return Start(claim, found.folder if found else None)
        damage = _damage(found, gang)
        if not damage:
            return Start(claim, found.folder)
        again.reject_contents(found, damage)


def _damage(found: verify.Found, gang: Gang) -> str:
    """What is wrong with a checkpoint; each rank reads rank 0's files and its own. Collective."""
    damage = ""
    try:
        verify.check_contents(found.folder, found.manifest, {0, gang.rank})
    except verify.Unusable as error:
        damage = str(error)
    return next(filter(None, gang.all(damage)), "")


@contextmanager
def plain(folder: Path) -> Iterator[Path]:
    """Give a name of a checkpoint that means itself as a pattern: libraries look for its files so.

    A job's folder may have brackets or stars in its name; then it is named by its open descriptor.
    """
    if glob.escape(str(folder)) == str(folder):
        yield folder
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def method_state(model: Any, config: StageConfig, folder: Path) -> None:
    """Put back what the job's method keeps outside its trained weights."""
    import torch

    path = folder / METHOD_STATE
    saved = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else {}
    methods.restore(model, config, saved)
