"""Pods on nodes that are gone: the rest of their gang is told to end, and nothing waits for ever."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from finetune_api.status import Child, Ledger
from finetune_operator.observed import ChildState, Live, Observed, ProcessEnd, WorkspaceState
from finetune_operator.plan import account, plan
from finetune_operator.steps import Finish, StartAttempt, Step, Stop, Wait
from harness.children import KINDS, at, child, moment, pod, read
from harness.looks import CLAIMS, NAMESPACE, PODS, Looks
from harness.memory_api import MemoryApi
from harness.operator_driver import JOBS
from harness.played_runs import first_try_of
from harness.simulation import START, make_choices, make_job

TWO = make_job({"resources": {"nodes": 2}})  # a grace period of 120 s
FIRST = Ledger(attempt=1, child=Child(kind="Job", name="tiny-1", uid="a1"), prepared=True)
GANG = ChildState("tiny-1", "a1", processes=2, running=2, ran=True, active_since=START)
SHARED, ALONE = WorkspaceState(shared=True), WorkspaceState(shared=False)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def look(ledger: Ledger, seconds: float, state: ChildState, **more: Any) -> tuple[Ledger, Step]:
    values = {"live": Live.of(TWO.spec), "choices": make_choices(), "workspace": SHARED, **more}
    seen = Observed(children=(state,), **values)
    ledger = account(TWO, ledger, seen, after(seconds))
    return ledger, plan(TWO, ledger, seen, after(seconds))


@pytest.mark.parametrize("workspace", [SHARED, ALONE], ids=["shared", "alone"])
def test_the_one_that_still_runs_is_told_before_anything_starts(workspace: WorkspaceState) -> None:
    """One of two is told at 100 s, because its node is lost; nobody tells the other."""
    half = replace(GANG, stopped_at=after(100))
    ledger, step = look(FIRST, 279, half, workspace=workspace)
    assert ledger == FIRST
    assert step == Wait(after(280), "Running", "Training", "attempt 1 is running")
    ledger, step = look(ledger, 280, half, workspace=workspace)
    assert ledger.attempt == 2
    assert step == Stop("tiny-1", "LostInfrastructure", "its try has ended")
    # However long nobody has told it.
    ledger, step = look(ledger, 100_000, half, workspace=workspace)
    assert step == Stop("tiny-1", "LostInfrastructure", "its try has ended")


def test_the_next_starts_a_minute_after_the_grace_period_of_the_last_that_was_told() -> None:
    ledger, _ = look(FIRST, 280, replace(GANG, stopped_at=after(100)))
    told = replace(GANG, stopped_at=after(100), told_at=after(281))
    _, step = look(ledger, 460, told)
    assert step == Wait(after(461), "Recovering", "WaitingForLastAttempt", "tiny-1 is ending")
    _, step = look(ledger, 461, told)
    assert isinstance(step, StartAttempt)
    _, step = look(ledger, 461, told, workspace=ALONE)
    assert isinstance(step, Wait)
    assert (step.until, step.reason) == (None, "VolumeHeldByLostNode")


def test_where_all_were_told_at_once_nothing_is_waited_for_twice() -> None:
    """The only node is lost: both are told at 100 s, and 2 starts after its back-off."""
    told = replace(GANG, stopped_at=after(100), told_at=after(100))
    ledger, step = look(FIRST, 280, told)
    assert ledger.attempt == 2
    assert isinstance(step, Wait)
    assert step.reason == "BackOff"
    _, step = look(ledger, 293, told)
    assert isinstance(step, StartAttempt)


def test_one_that_was_told_just_now_has_its_grace_period_whenever_another_failed() -> None:
    """Its controller is away: one process fails at 100 s, the other is told at 281 s."""
    failed = replace(GANG, running=1, ends=(ProcessEnd("tiny-1-0", after(100), 1),))
    ledger, step = look(FIRST, 281, failed)
    assert ledger.attempt == 2
    # The one that does not end is not why the other crashed.
    assert (ledger.failures, ledger.preemptions) == (1, 0)
    assert ledger.last_failure is not None
    assert (ledger.last_failure.class_, ledger.last_failure.exit_code) == ("Crashed", 1)
    assert step == Stop("tiny-1", "LostInfrastructure", "its try has ended")
    told = replace(failed, stopped_at=after(281), told_at=after(281))
    _, step = look(ledger, 295, told)
    assert step == Wait(after(461), "Recovering", "WaitingForLastAttempt", "tiny-1 is ending")


def test_a_crash_of_those_that_a_lost_node_left_alone_is_no_failure() -> None:
    """One is told at 100 s, because its node is lost, and is never seen again; the other crashes."""
    state = replace(
        GANG, running=1, stopped_at=after(100), ends=(ProcessEnd("tiny-1-0", after(130), 1),)
    )
    ledger, _ = look(FIRST, 280, state)
    assert (ledger.attempt, ledger.failures, ledger.preemptions) == (2, 0, 1)


def test_patience_goes_by_the_clock_of_those_that_tell_and_not_by_that_of_a_node() -> None:
    """The clock of the node that failed is 5 minutes behind; the other was told just now."""
    failed = ProcessEnd("tiny-1-0", after(-200), 1)
    state = replace(GANG, running=1, ends=(failed,), stopped_at=after(100))
    ledger, step = look(FIRST, 101, state)
    assert ledger == FIRST
    assert step == Wait(after(280), "Running", "Training", "attempt 1 is running")


@pytest.mark.parametrize("reason", ["NodeLost", "EvictedOwnLimits", None])
def test_one_that_has_ended_did_start_whether_its_pod_still_says_so_or_not(reason: Any) -> None:
    """Two hours on a pod's status is lost with its node; the other is told and saves."""
    end = ProcessEnd("tiny-1-0", after(7200), 137 if reason else None, reason)
    saving = replace(
        GANG, running=1, ran=False, ends=(end,) if reason else (), stopped_at=after(7202)
    )
    ledger, step = look(FIRST, 7203, saving)
    assert ledger == FIRST
    assert isinstance(step, Wait)
    over = replace(
        saving, running=0, over=True, ends=(*saving.ends, ProcessEnd("b", after(7230), 143))
    )
    ledger, _ = look(ledger, 7230, over)
    assert ledger.last_failure is not None
    expected = {"NodeLost": "LostInfrastructure", "EvictedOwnLimits": "Evicted", None: "Preempted"}
    assert ledger.last_failure.class_ == expected[reason]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_that_a_restarted_node_turns_away_ended_when_that_was_seen(kind: str) -> None:
    """Its kubelet replaces the status: nothing is left in it but when the pod began, 5 hours ago."""
    refused = pod(kind, 1)
    why = {"reason": "UnexpectedAdmissionError", "message": "no healthy devices present"}
    refused["status"] = {"phase": "Failed", "startTime": at(10), **why}
    saving = pod(kind, 0)
    state = read(kind, child(kind, "Failed"), [saving, refused])
    assert [end.undated for end in state.ends] == [True]
    now = moment(10) + timedelta(hours=5)
    ledger = FIRST.model_copy(update={"child": Child(kind=kind, name="bot-1", uid="child-1")})
    written = {"subresource": "status", "time": "2026-03-01T17:00:08Z"}
    noted = {**refused, "metadata": {**refused["metadata"], "managedFields": [written]}}
    (end,) = read(kind, child(kind, "Failed"), [saving, noted]).ends
    assert (end.undated, end.at) == (False, now - timedelta(seconds=2))
    told = replace(state, stopped_at=now - timedelta(seconds=2))
    live, choices = Live.of(TWO.spec), make_choices()
    seen = Observed(live=live, children=(told,), choices=choices)
    assert account(TWO, ledger, seen, now) == ledger, "the other still saves"

    refused["metadata"] = pod(kind, 0)["metadata"]
    over = read(kind, child(kind, "Failed"), [refused], processes=1)
    seen = Observed(live=live, children=(over,), choices=choices)
    ledger = account(TWO, ledger, seen, now)
    assert ledger.last_failure is not None
    assert (ledger.last_failure.class_, ledger.last_failure.time) == (
        "Preempted",
        "2026-03-01T17:00:10Z",
    )
    # From when the child left the queue (second 5) until now.
    assert ledger.active_seconds == 5 * 3600 + 5


@pytest.mark.parametrize("kind", KINDS)
def test_when_all_that_live_were_told(kind: str) -> None:
    lost, other = pod(kind, 1, told=30), pod(kind, 0)
    ending = child(kind, deletionTimestamp=at(211), deletionGracePeriodSeconds=0)
    # The lost one alone; both, while another may be made for either; its object, nobody else.
    assert read(kind, child(kind, "Running"), [other, lost]).told_at is None
    both = [pod(kind, 0, told=40), lost]
    assert read(kind, child(kind, "Running"), both).told_at is None
    assert read(kind, ending, [other, lost]).told_at is None
    # The last of them counts, and not when its object was deleted.
    assert read(kind, ending, both).told_at == moment(40)
    assert read(kind, child(kind, "Failed"), both).told_at == moment(40)
    saved = pod(kind, 0, "ended", code=143, told=40, ends=50)
    assert read(kind, ending, [saved, lost]).told_at == moment(30)
    assert read(kind, child(kind, "Failed"), [other, lost]).told_at is None


def shared_claim(looks: Looks) -> None:
    claim = {"metadata": {"name": "shared"}, "spec": {"accessModes": ["ReadWriteMany"]}}
    looks.api.create(CLAIMS, claim)


def two_nodes(kind: str) -> Looks:
    """A job of two pods that trains."""
    looks = Looks(api=MemoryApi(pytorch=kind == "PyTorchJob"), script=first_try_of("train"))
    shared_claim(looks)
    looks.create(resources={"nodes": 2}, workspace={"claimName": "shared"})
    looks.train()
    assert looks.api.get(f"{PODS}/{name_of(kind, 0)}")["status"]["phase"] == "Running"
    return looks


def name_of(kind: str, index: int) -> str:
    return f"bot-1-worker-{index}" if kind == "PyTorchJob" else f"bot-1-{index}-abcde"


def plural_of(kind: str) -> str:
    return "pytorchjobs" if kind == "PyTorchJob" else "jobs"


def pods_of(looks: Looks, attempt: int) -> list[dict[str, Any]]:
    pods = looks.api.get(PODS)["items"]
    return [one for one in pods if one["metadata"]["name"].startswith(f"bot-{attempt}-")]


@pytest.mark.parametrize("kind", KINDS)
def test_two_gangs_never_train_at_the_same_time(kind: str) -> None:
    looks = two_nodes(kind)
    looks.player.lose(name_of(kind, 1))
    for _ in range(60):
        looks.turn()
        for one in pods_of(looks, 1) if pods_of(looks, 2) else ():
            assert "deletionTimestamp" in one["metadata"], one["metadata"]["name"]
        if looks.status.get("outcome"):
            break
        looks.ahead += timedelta(seconds=10)

    writes = [one for one in looks.api.writes if "events" not in one]
    plural = plural_of(kind)
    assert writes.index(f"delete {plural} bot-1") < writes.index(f"create {plural} bot-2")
    status = looks.status
    assert (status["outcome"], status["attempt"]) == ("Succeeded", 2)
    assert (status["failures"], status["preemptions"]) == (0, 1)
    assert status["lastFailure"]["class"] == "LostInfrastructure"
    # Nobody removes by force what may still run.
    assert [one["metadata"]["name"] for one in pods_of(looks, 1)] == [name_of(kind, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_has_ended_is_not_looked_at_for_ever_for_a_lost_node(kind: str) -> None:
    looks = two_nodes(kind)
    looks.change(ttlSecondsAfterFinished=3600)
    looks.player.lose(name_of(kind, 1))
    for _ in range(60):
        looks.turn()
        if looks.status.get("outcome"):
            break
        looks.ahead += timedelta(seconds=10)
    assert looks.status["outcome"] == "Succeeded"
    assert pods_of(looks, 1), "the pod is still there"
    wait = looks.settle()
    assert wait is not None
    assert 3590 < wait <= 3601  # the end is written down in whole seconds
    looks.ahead += timedelta(seconds=3601)
    looks.settle()
    assert not looks.api.get(JOBS.format(namespace=NAMESPACE))["items"]


def test_a_job_whose_time_is_over_waits_for_what_it_told_to_end_and_no_longer() -> None:
    looks = Looks(script=first_try_of("train"))
    looks.create(activeDeadlineSeconds=600, ttlSecondsAfterFinished=3600)
    looks.train()
    looks.ahead += timedelta(seconds=590)
    looks.player.lose("bot-1-0-abcde")
    looks.ahead += timedelta(seconds=20)
    waits = []
    for _ in range(30):
        waits.append(looks.turn())
        looks.ahead += timedelta(seconds=20)
    status = looks.status
    assert (status["outcome"], status["lastFailure"]["class"]) == ("Failed", "DeadlineExceeded")
    assert all(wait is None or wait >= 1 for wait in waits), waits
    assert waits[-1] is not None
    assert 2900 < waits[-1] <= 3600, "what is left is the time for which it is kept"


def test_the_end_of_a_job_is_told_while_its_pods_may_still_run() -> None:
    ledger = FIRST.model_copy(update={"outcome": "Failed", "finished_at": "2026-01-01T00:05:00Z"})
    _, step = look(ledger, 400, replace(GANG, stopped_at=after(100)))
    assert step == Stop("tiny-1", "Stopped", "the job has ended")
    told = replace(GANG, stopped_at=after(100), told_at=after(401))
    _, step = look(ledger, 580, told)
    assert step == Stop("tiny-1", "Stopped", "the job has ended", after(581))
    _, step = look(ledger, 581, told)
    assert isinstance(step, Finish)
    _, step = look(ledger, 581, told, workspace=ALONE)
    assert isinstance(step, Finish)


@pytest.mark.parametrize(
    ("due", "wait"), [(-100.0, 60.0), (0.0, 60.0), (0.01, 0.1), (5.0, 5.0), (100.0, 60.0)]
)
def test_what_was_due_before_this_look_is_not_looked_at_again_at_once(
    due: float, wait: float
) -> None:
    worker, seen = Looks().worker, Observed(live=Live.of(TWO.spec))
    for step in (
        Stop("tiny-1", "Stopped", "the job has ended", after(100 + due)),
        Wait(after(100 + due), "Recovering", "WaitingForLastAttempt", "tiny-1 is ending"),
    ):
        assert worker._next(step, seen, after(100), changed=False) == wait
