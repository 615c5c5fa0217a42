"""A job of two pods that is disturbed again and again, and what must hold each time it goes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from harness.paused import let_go_on, pause, told
from harness.stage_config import merged
from harness.tenant import Kept, Tenant

EVERY = 20
"""Steps between two checkpoints: the most that may be lost."""
SPEC: dict[str, Any] = {
    "training": {"maxSteps": 400, "globalBatchSize": 8, "microBatchSize": 2},
    "parallelism": {"deepspeed": {"zeroStage": 2}},
    "resources": {"nodes": 2, "accelerator": {"device": "cpu", "perNode": 2}},
    "checkpoint": {"everySteps": EVERY, "gracePeriodSeconds": 20, "keep": 100},
}
"""Enough steps to be disturbed five times, each some steps beyond a checkpoint: in between, and until
pods are told to end, jobs stand still. Every checkpoint is kept, so that a look at one is never too late."""
ONCE = merged(SPEC, {"training": {"maxSteps": 160}})
"""Enough to be disturbed once."""
UNFINISHED = "no manifest.json"
"""How the reason begins for which a save that was cut off is passed over."""


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


@dataclass(frozen=True)
class After:
    """What the next attempt continues, as its claim says, and as the cluster sees it then."""

    claim: dict[str, Any]
    manifest: dict[str, Any]
    status: dict[str, Any]


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
        """Return the job as it trains beyond a checkpoint of this attempt; None until then.

        Steps before the next checkpoint are left, so that it is still the newest when something is
        done with what was seen.
        """
        status = self.tenant.status(self.name)
        assert not status.get("outcome"), (
            f"{self.name} ended at attempt {status['attempt']} before it was disturbed:"
            f" {status.get('lastFailure')}"
        )
        assert status.get("attempt", 0) <= self.attempt, (
            f"attempt {status['attempt']} of {self.name} runs, and none after {self.attempt} was told"
            " of: a test before this one has failed"
        )
        if status.get("attempt") != self.attempt or not (status.get("child") or {}).get("uid"):
            return None
        progress = self.kept.progress()
        saved = progress.get("checkpoint") or {}
        if progress.get("attempt") != self.attempt or progress.get("phase") != "training":
            return None
        if not saved.get("path", "").startswith(f"checkpoints/{self.attempt}/"):
            return None
        if not 3 <= progress["step"] - saved["step"] <= EVERY // 2:
            return None
        pods = self.tenant.running(self.name)
        if len(pods) != 2:
            return None
        return Before(tuple(pods), status["child"]["name"], progress["step"], saved["step"])

    def held(self, after: Before | None = None) -> tuple[Before, list[int]] | None:
        """Return the job in training, and its processes, which stand still; None until then.

        ``after``: and until it is further than it was then.
        """
        before = self.in_training()
        if before is None or (after is not None and before.step <= after.step):
            return None
        processes = pause(before.pods)
        if self.kept.saved()[-1] == f"{self.attempt}/step-{before.checkpoint}":
            return before, processes
        let_go_on(processes)  # it has saved again meanwhile
        return None

    def next_claim(self) -> After | None:
        """Return the job as the next attempt finds it; None until that has its claim."""
        claim = self.kept.claim(self.attempt + 1)
        if not claim:
            return None
        place = claim["resumesFrom"]["path"].removeprefix("checkpoints/")
        return After(claim, self.kept.manifest(place), self.tenant.status(self.name))

    def goes_on(
        self, before: Before, causes: Collection[str], *, together: bool, timeout: float = 400.0
    ) -> dict[str, Any]:
        """Wait for the next attempt's claim and check what it is; returns the status."""
        return all_go_on([End(self, before, causes, together=together)], timeout)[self.name]

    def check(self, end: End, after: After) -> None:
        """Check that the attempt that runs now continues what ended."""
        ended = self.attempt - 1
        claim, status, resumed = after.claim, after.status, after.claim["resumesFrom"]
        assert claim["attempt"] == self.attempt
        assert resumed["path"] == f"checkpoints/{ended}/step-{resumed['step']}"
        assert end.before.checkpoint <= resumed["step"]
        # Told ranks finish what they save. Killed ones may leave a save that has no manifest yet.
        unfinished = (
            []
            if end.together
            else [one for one in claim.get("rejected", []) if one["reason"].startswith(UNFINISHED)]
        )
        assert claim.get("rejected", []) == unfinished
        assert all(one["step"] > resumed["step"] for one in unfinished), unfinished
        assert len(unfinished) <= 1, unfinished

        (entry,) = [one for one in status["resumes"] if one["attempt"] == self.attempt]
        assert entry["cause"] in end.causes, status.get("lastFailure")
        assert status["lastFailure"]["class"] == entry["cause"]
        assert (status["attempt"], status["failures"]) == (self.attempt, 0)
        assert status["preemptions"] == self.attempt - 1
        # What was reached and not saved is trained again: less than one cadence.
        assert max(self.kept.steps(ended)) - resumed["step"] <= EVERY
        assert {file.get("rank", 0) for file in after.manifest["files"]} == {0, 1}
        if end.together:
            said = [self.kept.end(ended, node) for node in (0, 1)]
            assert [one["exitCode"] for one in said] == [143, 143], said
            assert [one["step"] for one in said] == [resumed["step"]] * 2
            assert [one["checkpoint"]["path"] for one in said] == [resumed["path"]] * 2
            assert resumed["step"] >= end.before.step
            assert after.manifest["reason"] in ("signal", "cadence")


def all_told(tenant: Tenant, *pods: Mapping[str, Any]) -> None:
    """Wait until SIGTERM waits for each of the pods, which stand still."""
    names = " and ".join(pod["metadata"]["name"] for pod in pods)
    tenant.wait(lambda: all(told(pod) for pod in pods), f"{names} are told to end")


@dataclass(frozen=True)
class End:
    """How an attempt was ended."""

    job: Disturbed
    before: Before
    causes: Collection[str]
    """Classes of which its end has one."""
    together: bool
    """Whether all ranks were told, and so had to save the same step."""


def all_train(
    jobs: Sequence[Disturbed],
    timeout: float = 400.0,
    after: Mapping[str, Before] | None = None,
) -> dict[str, Before]:
    """Wait until all train beyond a checkpoint of this attempt; returns how each was, by name.

    ``after``: and are further than they were then.
    """
    with ExitStack() as held:
        return all_held(jobs, held, timeout, after)


def all_held(
    jobs: Sequence[Disturbed],
    held: ExitStack,
    timeout: float = 400.0,
    after: Mapping[str, Before] | None = None,
) -> dict[str, Before]:
    """Wait as ``all_train`` does; all stand still until ``held`` is closed.

    Those that are there first stand still until the last one is: else they would come to their end
    meanwhile, or not, by how fast the machine is.
    """
    found: dict[str, Before] = {}

    def look() -> bool:
        for job in jobs:
            if job.name not in found and (seen := job.held(after and after[job.name])):
                found[job.name], processes = seen
                held.callback(let_go_on, processes)
        return len(found) == len(jobs)

    names = " and ".join(f"{job.name} (attempt {job.attempt})" for job in jobs)
    jobs[0].tenant.wait(look, f"{names} train", timeout)
    return found


def all_go_on(ends: Sequence[End], timeout: float = 400.0) -> dict[str, dict[str, Any]]:
    """Wait for the claims of the next attempts and check them; returns each status by name.

    Everything is read as soon as the job's claim is there, whatever the other one waits for; and
    who has its claim stands still until the others have theirs, as in ``all_held``.
    """
    found: dict[str, After] = {}
    with ExitStack() as held:

        def look() -> bool:
            for end in ends:
                name = end.job.name
                if name not in found and (after := end.job.next_claim()):
                    held.callback(let_go_on, pause(end.job.tenant.running(name)))
                    found[name] = after
            return len(found) == len(ends)

        names = " and ".join(f"attempt {end.job.attempt + 1} of {end.job.name}" for end in ends)
        ends[0].job.tenant.wait(look, f"the claim of {names} is there", timeout)
    for end in ends:  # whatever the checks say, these are the ones that run
        end.job.attempt += 1
    for end in ends:
        end.job.check(end, found[end.job.name])
    return {name: after.status for name, after in found.items()}
