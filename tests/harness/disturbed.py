"""A job of two pods that is disturbed again and again, and what must hold each time it goes on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from harness.tenant import Kept, Tenant

EVERY = 20
"""Steps between two checkpoints: the most that may be lost."""
SPEC: dict[str, Any] = {
    "training": {"maxSteps": 700, "globalBatchSize": 8},
    "parallelism": {"deepspeed": {"zeroStage": 2}},
    "resources": {"nodes": 2, "accelerator": {"device": "cpu", "perNode": 2}},
    "checkpoint": {"everySteps": EVERY, "gracePeriodSeconds": 20},
}
"""Enough steps to be disturbed in the middle of training, however fast the machine is."""


@dataclass(frozen=True)
class Before:
    """A job in mid-training."""

    pods: tuple[dict[str, Any], ...]
    child: str
    step: int
    checkpoint: int

    @property
    def names(self) -> list[str]:
        """Of its pods, the one of rank 0 first."""
        return [pod["metadata"]["name"] for pod in self.pods]


@dataclass
class Disturbed:
    """The attempt that runs is the ``attempt``-th, and each before it was ended from outside."""

    tenant: Tenant
    name: str
    attempt: int = 1

    @property
    def kept(self) -> Kept:
        """What it left in its workspace."""
        return self.tenant.kept(self.name)

    def in_training(self) -> Before | None:
        """Return the job as it trains beyond a checkpoint of this attempt; None until then."""
        status = self.tenant.status(self.name)
        assert not status.get("outcome"), (
            f"{self.name} ended at attempt {status['attempt']} before it was disturbed:"
            f" {status.get('lastFailure')}"
        )
        if status.get("attempt") != self.attempt or not (status.get("child") or {}).get("uid"):
            return None
        pods = self.tenant.running(self.name)
        if len(pods) != 2:
            return None
        progress = self.kept.progress()
        saved = progress.get("checkpoint") or {}
        if progress.get("attempt") != self.attempt or progress.get("phase") != "training":
            return None
        if not saved.get("path", "").startswith(f"checkpoints/{self.attempt}/"):
            return None
        if progress["step"] < saved["step"] + 3:
            return None
        return Before(tuple(pods), status["child"]["name"], progress["step"], saved["step"])

    def trains(self, timeout: float = 400.0) -> Before:
        """Wait until it trains beyond a checkpoint of this attempt."""
        words = f"{self.name} trains, attempt {self.attempt}"
        return self.tenant.wait(self.in_training, words, timeout)  # type: ignore[no-any-return]

    def goes_on(
        self,
        before: Before,
        causes: Collection[str],
        *,
        together: bool,
        timeout: float = 400.0,
    ) -> dict[str, Any]:
        """Wait for the next attempt's claim and check what it is; returns the status.

        Args:
            before: the job when it was disturbed.
            causes: classes of which the end has one.
            together: whether all ranks were told, and so had to save the same step.
            timeout: seconds until the next attempt has its claim.
        """
        ended, self.attempt = self.attempt, self.attempt + 1

        def claimed() -> dict[str, Any]:
            return self.kept.claim(self.attempt)

        words = f"attempt {self.attempt} of {self.name} has its claim"
        claim = self.tenant.wait(claimed, words, timeout)
        status = self.tenant.status(self.name)
        resumed = claim["resumesFrom"]
        place = f"{ended}/step-{resumed['step']}"
        assert claim["attempt"] == self.attempt
        assert resumed["path"] == f"checkpoints/{place}"
        assert before.checkpoint <= resumed["step"]
        assert claim.get("rejected", []) == []

        (entry,) = [one for one in status["resumes"] if one["attempt"] == self.attempt]
        assert entry["cause"] in causes, status.get("lastFailure")
        assert status["lastFailure"]["class"] == entry["cause"]
        assert (status["attempt"], status["failures"]) == (self.attempt, 0)
        assert status["preemptions"] == self.attempt - 1
        # What was reached and not saved is trained again: less than one cadence.
        assert self._reached(ended) - resumed["step"] <= EVERY
        manifest = self.kept.manifest(place)
        assert {file.get("rank", 0) for file in manifest["files"]} == {0, 1}
        if together:
            ends = [self.kept.end(ended, node) for node in (0, 1)]
            assert [end["exitCode"] for end in ends] == [143, 143], ends
            assert [end["step"] for end in ends] == [resumed["step"]] * 2
            assert [end["checkpoint"]["path"] for end in ends] == [resumed["path"]] * 2
            assert resumed["step"] >= before.step
            assert manifest["reason"] in ("signal", "cadence")
        return status

    def _reached(self, claim: int) -> int:
        """The last step that a claim logged."""
        return max(self.kept.steps(claim))
