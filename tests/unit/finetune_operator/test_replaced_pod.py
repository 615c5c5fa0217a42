"""A second pod for one place ends the attempt at once: its cause is in status before it is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.status import Ledger
from finetune_operator.backend import BACKENDS
from finetune_operator.observed import ChildState, Live, Observed, ProcessEnd
from finetune_operator.plan import account, plan
from finetune_operator.steps import StartAttempt, Stop, Wait
from harness.looks import NAMESPACE, PODS, Looks
from harness.memory_api import MemoryApi
from harness.played_runs import Run
from harness.simulation import START, make_choices, make_job

AT = "2026-03-01T12:00:{:02d}Z"


def pod(name: str, uid: str, index: int, phase: str, created: int, **metadata: Any) -> Any:
    state = {"running": {"startedAt": AT.format(created)}} if phase == "Running" else {}
    return {
        "metadata": {
            "name": name,
            "uid": uid,
            "labels": {"training.kubeflow.org/replica-index": str(index)},
            "ownerReferences": [{"uid": "c1", "controller": True}],
            "creationTimestamp": AT.format(created),
            **metadata,
        },
        "status": {
            "phase": phase,
            "containerStatuses": [{"name": "pytorch", "state": state}] if state else [],
        },
    }


def child(condition: str = "Running", *, suspend: bool = False, **metadata: Any) -> Any:
    return {
        "kind": "PyTorchJob",
        "metadata": {"name": "bot-1", "uid": "c1", "creationTimestamp": AT.format(0), **metadata},
        "spec": {
            "runPolicy": {"suspend": suspend},
            "pytorchReplicaSpecs": {"Worker": {"replicas": 2}},
        },
        "status": {"conditions": [{"type": condition, "status": "True"}]},
    }


FIRST = pod("bot-1-worker-0", "p0", 0, "Running", 1)
GONE = pod("bot-1-worker-1", "p1", 1, "Pending", 1, deletionTimestamp=AT.format(20))
SECOND = pod("bot-1-worker-1", "p2", 1, "Pending", 21)


@pytest.mark.parametrize(
    ("body", "pods", "gone", "replaced"),
    [
        (child(), [FIRST, SECOND], [GONE], "bot-1-worker-1"),
        (child(), [FIRST, SECOND], [], ""),
        (child(), [FIRST, {**GONE}], [], ""),
        (child(), [FIRST], [GONE], ""),
        (child("Failed"), [FIRST, SECOND], [GONE], ""),
        (child("Succeeded"), [FIRST, SECOND], [GONE], ""),
        (child(suspend=True), [FIRST, SECOND], [GONE], ""),
        (child(deletionTimestamp=AT.format(30)), [FIRST, SECOND], [GONE], ""),
    ],
)
def test_a_second_uid_for_one_place_is_seen(
    body: Any, pods: list[Any], gone: list[Any], replaced: str
) -> None:
    assert BACKENDS["PyTorchJob"].read(body, pods, gone).replaced == replaced


RUNNING = ChildState("tiny-1", "a1", processes=2, running=2, ran=True, active_since=START)
PREPARED = Ledger(
    attempt=1,
    child={"kind": "Process", "name": "tiny-1", "uid": "a1"},  # type: ignore[arg-type]
    prepared=True,
)


@pytest.mark.parametrize(
    ("reason", "class_"),
    [("Deleted", "LostInfrastructure"), ("DisruptionTarget", "Preempted"), (None, None)],
)
def test_the_attempt_is_stopped_at_once_and_counts_as_what_ended_the_first(
    reason: Any, class_: str | None
) -> None:
    job = make_job()
    now = START + timedelta(seconds=60)
    end = ProcessEnd("tiny-1-worker-1", now, None, reason)
    broken = replace(RUNNING, ends=(end,) if class_ else (), replaced="tiny-1-worker-1")
    seen = Observed(live=Live.of(job.spec), children=(broken,), choices=make_choices())

    ledger = account(job, PREPARED, seen, now)
    step = plan(job, ledger, seen, now)

    assert ledger.stopping == (class_ or "LostInfrastructure")
    assert ledger.attempt == 1
    assert ledger.last_failure is not None
    assert ledger.last_failure.message.endswith("; another took the place of tiny-1-worker-1")
    assert isinstance(step, Stop)
    assert (step.child, step.reason) == ("tiny-1", class_ or "LostInfrastructure")

    later = START + timedelta(seconds=70)
    told = tuple(ProcessEnd(f"tiny-1-worker-{node}", later, 143) for node in (0, 1))
    over = replace(broken, ends=(*broken.ends, *told), over=True, running=0)
    seen = replace(seen, children=(over,))
    ledger = account(job, ledger, seen, later)
    assert (ledger.attempt, ledger.failures, ledger.preemptions) == (2, 0, 1)
    assert ledger.last_failure is not None
    assert ledger.last_failure.class_ == (class_ or "LostInfrastructure")
    assert ledger.last_failure.message.endswith("; another took the place of tiny-1-worker-1")
    step = plan(job, ledger, seen, later)
    assert isinstance(step, Wait)
    assert step.reason == "BackOff"
    assert isinstance(plan(job, ledger, seen, later + timedelta(minutes=1)), StartAttempt)


def test_status_says_why_before_the_child_is_deleted() -> None:
    def script(stage: str, attempt: int, node: int) -> Run:
        del node
        return Run(forever=stage == "train" and attempt == 1)

    looks = Looks(api=MemoryApi(pytorch=True), script=script)
    looks.create(resources={"nodes": 2}, workspace={"claimName": "shared"})
    claim = {"metadata": {"name": "shared"}, "spec": {"accessModes": ["ReadWriteMany"]}}
    looks.api.create(f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims", claim)
    looks.player.pytorch = True
    looks.player.held.add("bot-1")
    for _ in range(12):
        looks.turn()
    # Its controller makes another for a pod that was deleted before it ran.
    looks.api.request("DELETE", f"{PODS}/bot-1-worker-1", {"gracePeriodSeconds": 0})
    looks.player.turn()
    assert looks.player.made.count("bot-1-worker-1") == 2
    looks.player.held.clear()
    before = len(looks.api.writes)

    looks.settle()

    writes = [one for one in looks.api.writes[before:] if "events" not in one]
    assert writes[:2] == ["status finetunejobs bot", "delete pytorchjobs bot-1"]
    assert looks.status["stopping"] == "LostInfrastructure"
    assert "took the place of bot-1-worker-1" in looks.status["lastFailure"]["message"]
    status = looks.live()
    assert (status["outcome"], status["attempt"], status["preemptions"]) == ("Succeeded", 2, 1)
    assert status.get("failures", 0) == 0
    assert looks.player.most_alive == {"bot": 1}
