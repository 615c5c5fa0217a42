"""A job whose pods only wait for room waits as long as it takes, and is never failed for it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from finetune_api.status import Child, Ledger
from finetune_operator.observed import ChildState, Live, Observed, ProcessEnd, Waiting
from finetune_operator.plan import account, plan
from finetune_operator.steps import Step, Stop
from harness.children import KINDS, cause, child, moment, pod, read
from harness.looks import CLAIMS, Looks
from harness.memory_api import MemoryApi
from harness.played_runs import Run
from harness.simulation import START, make_choices, make_job

JOB = make_job()
FIRST = Ledger(attempt=1, child=Child(kind="Job", name="tiny-1", uid="a1"), prepared=True)
STUCK = ChildState("tiny-1", "a1", active_since=START)
ROOM = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def look(ledger: Ledger, seconds: float, *states: ChildState) -> tuple[Ledger, Step]:
    seen = Observed(live=Live.of(JOB.spec), children=states, choices=make_choices())
    ledger = account(JOB, ledger, seen, after(seconds))
    return ledger, plan(JOB, ledger, seen, after(seconds))


ENDS = {
    "its object is there and its pod was never seen to end": replace(STUCK, over=True),
    "its pod was deleted": replace(
        STUCK, over=True, ends=(ProcessEnd("w", after(1801), None, "Deleted"),)
    ),
    "a process of it that ran was told to end": replace(
        STUCK, over=True, processes=2, ends=(ProcessEnd("w", after(1830), 143),)
    ),
    "it is gone": None,
}


@pytest.mark.parametrize("ended", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize(
    "reason",
    ["WaitingForRoom", "NoNodeFits", "VolumeInOtherZone", "QuotaExceeded", "Gated", "Queued"],
)
def test_what_it_waited_for_is_known_after_its_end(reason: str, ended: ChildState | None) -> None:
    """An ended child waits for nothing any more: why it did not start stands in the ledger."""
    ledger, step = look(FIRST, 1800, replace(STUCK, waiting=Waiting(reason, ROOM)))
    assert isinstance(step, Stop)
    assert step.reason == "StartTimeout"
    ledger, _ = look(ledger, 1830, *([] if ended is None else [ended]))
    assert (ledger.attempt, ledger.outcome) == (2, None)
    assert (ledger.attempts_without_progress, ledger.interrupted_starts) == (0, 0)
    assert (ledger.failures, ledger.preemptions) == (0, 0)
    failure = ledger.last_failure
    assert failure is not None
    assert (failure.class_, failure.code) == ("StartTimeout", "no-room")
    assert failure.message == f"not all processes ran within 30m; {reason}: {ROOM}"
    assert failure.fix == (
        "nothing needs mending where room will come: it is tried again until there is some; else"
        " ask for less, or for a larger quota"
    )


@pytest.mark.parametrize(
    "reason", ["ImagePullFailed", "ClaimNotBound", "AdmissionRefused", "ResourcesNotNamed", None]
)
@pytest.mark.parametrize("gone", [True, False])
def test_what_somebody_has_to_mend_counts_as_ever(reason: str | None, gone: bool) -> None:
    ledger = FIRST
    for number in (1, 2, 3):
        assert ledger.outcome is None
        began = 3600.0 * number
        stuck = replace(STUCK, name=f"tiny-{number}", active_since=after(began))
        waiting = Waiting(reason, "as it is said") if reason else None
        ledger, _ = look(ledger, began, stuck)
        ledger, step = look(ledger, began + 1800, replace(stuck, waiting=waiting))
        assert isinstance(step, Stop)
        ledger, _ = look(ledger, began + 1830, *([] if gone else [replace(stuck, over=True)]))
        assert ledger.attempts_without_progress == number
        assert ledger.last_failure is not None
    assert ledger.outcome == "Failed"
    assert (ledger.last_failure.class_, ledger.last_failure.code) == ("NoProgress", "no-progress")
    said = f"; {reason}: as it is said" if reason else ""
    assert ledger.last_failure.message == (
        "3 attempts ended, and none left a newer verified checkpoint;"
        f" the last: not all processes ran within 30m{said}"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [1, 2])
def test_the_operator_waits_for_room_for_as_long_as_there_is_none(kind: str, first: int) -> None:
    """The cluster is full from the first attempt on, or from the second, after a preemption."""

    def script(stage: str, attempt: int, node: int) -> Run:
        del node
        told = stage == "train" and attempt < first
        return Run(exit_code=143, step=20, checkpoint=20) if told else Run()

    looks = Looks(api=MemoryApi(pytorch=kind == "PyTorchJob"), script=script)
    looks.create()
    looks.player.roomless |= {f"bot-{number}-" for number in range(first, 40)}
    reasons, waits = set(), []
    for _ in range(300):
        waits.append(looks.turn())
        assert looks.status.get("outcome") is None, looks.status["lastFailure"]
        reasons |= {
            reason
            for kind_, (true, reason, _) in looks.conditions().items()
            if kind_ in ("Recovering", "Running") and true != "Unknown"
        }
        looks.ahead += timedelta(seconds=120)
    status = looks.status
    # Ten hours: one attempt in 30 minutes, the ends of which take minutes.
    assert first + 14 <= status["attempt"] <= first + 19
    assert status.get("attemptsWithoutProgress", 0) == 0
    assert (status.get("failures", 0), status.get("preemptions", 0)) == (0, first - 1)
    assert status["lastFailure"]["code"] == "no-room"
    assert "WaitingForRoom" in reasons

    looks.player.roomless.clear()
    for _ in range(40):
        looks.turn()
        looks.ahead += timedelta(seconds=15)
        if looks.status.get("outcome"):
            break
    assert looks.status["outcome"] == "Succeeded"
    assert looks.player.most_alive == {"bot": 1}


def unplaced(kind: str, **more: Any) -> dict[str, Any]:
    """A pod of index 1 for which the scheduler finds no node."""
    found = pod(kind, 1, "pending", **more)
    said = {"reason": "Unschedulable", "message": ROOM, "type": "PodScheduled", "status": "False"}
    found["status"]["conditions"] = [said]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_those_that_waited_in_vain_for_one_without_room_lost_nothing(kind: str) -> None:
    """One of two runs, waits ten minutes for the other and gives up; then both are removed."""
    alone = pod(kind, 0, "ended", code=20, begins=10, ends=610)
    for there, gone in (([alone, unplaced(kind)], []), ([alone], [unplaced(kind, told=611)])):
        found = read(kind, child(kind, "Failed"), there, gone=gone)
        assert found.roomless == Waiting("WaitingForRoom", f"1 of 2 pods: {ROOM}")
        assert [end.exit_code for end in found.ends] == [20]
    assert found.over
    job = make_job({"resources": {"nodes": 2}})
    first = FIRST.model_copy(update={"child": Child(kind=kind, name="bot-1", uid=found.uid)})
    seen = Observed(live=Live.of(job.spec), children=(found,), choices=make_choices())
    ledger = account(job, first, seen, moment(620))
    assert (ledger.attempt, ledger.failures, ledger.preemptions) == (2, 0, 0)
    assert (ledger.attempts_without_progress, ledger.interrupted_starts) == (0, 0)
    failure = ledger.last_failure
    assert failure is not None
    assert (failure.class_, failure.code) == ("StartTimeout", "no-room")
    assert failure.message == (
        f"not all processes ran, and those that did waited in vain; WaitingForRoom:"
        f" 1 of 2 pods: {ROOM}"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_wrong_by_itself_beside_one_without_room_is_what_counts(kind: str) -> None:
    for code, class_ in ((1, "Crashed"), (11, "InvalidData"), (143, "Preempted")):
        alone = pod(kind, 0, "ended", code=code)
        found = read(kind, child(kind, "Failed"), [alone], gone=[unplaced(kind, told=61)])
        assert cause(found) == class_
    # One that had no room and was taken away is all that there is to say.
    found = read(kind, child(kind, "Failed"), [], gone=[unplaced(kind, told=61)])
    assert cause(found) == "LostInfrastructure"
    # Two that ran and lost each other had their room.
    both = [pod(kind, 0, "ended", code=20), pod(kind, 1, "ended", code=20)]
    found = read(kind, child(kind, "Failed"), both)
    assert (found.roomless, cause(found)) == (None, "CommunicationLost")


@pytest.mark.parametrize("kind", KINDS)
def test_a_gang_of_which_one_has_no_room_never_fails_the_job(kind: str) -> None:
    def script(stage: str, attempt: int, node: int) -> Run:
        del node
        lonely = stage == "train" and attempt < 41
        return Run(exit_code=20, step=0, checkpoint=None) if lonely else Run()

    looks = Looks(api=MemoryApi(pytorch=kind == "PyTorchJob"), script=script)
    claim = {"metadata": {"name": "shared"}, "spec": {"accessModes": ["ReadWriteMany"]}}
    looks.api.create(CLAIMS, claim)
    looks.create(resources={"nodes": 2}, workspace={"claimName": "shared"})
    second = "bot-{}-worker-1" if kind == "PyTorchJob" else "bot-{}-1-"
    looks.player.roomless |= {second.format(number) for number in range(1, 41)}
    for _ in range(800):
        looks.turn()
        looks.ahead += timedelta(seconds=10)
        if looks.status.get("outcome"):
            break
    status = looks.status
    assert (status["outcome"], status["attempt"]) == ("Succeeded", 41)
    assert (status.get("failures", 0), status.get("preemptions", 0)) == (0, 0)
    assert looks.player.most_alive == {"bot": 1}
