"""How many jobs start again at once: a place is held by a start that goes on, and by nothing else."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from finetune_operator.queue import Key
from finetune_operator.restarts import LONGEST, Restarts
from harness.jobs import job_object
from harness.looks import NAMESPACE, Looks
from harness.operator_driver import JOBS
from harness.played_runs import Run

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
OTHER = Key(NAMESPACE, "other")


def interrupted(stage, attempt, node):
    """Both first attempts are preempted; the second ones train."""
    del node
    if stage != "train":
        return Run()
    return Run(exit_code=143, step=30, checkpoint=30) if attempt == 1 else Run(forever=True)


def look_at_other(looks):
    """Look at the other job until nothing more is to be done at once."""
    for _ in range(30):
        for (plural, _, name), body in looks.api.objects.items():
            if (plural, name) == ("finetunejobs", "other"):
                looks.worker.known.learn(body)
        wait = asyncio.run(looks.worker.look(OTHER))
        if wait is None or wait > 0:
            return
    raise AssertionError("it never comes to rest")


def status_of_other(looks):
    return looks.api.get(f"{JOBS.format(namespace=NAMESPACE)}/other")["status"]


def why_other_recovers(looks):
    said = status_of_other(looks)["conditions"]
    return next(one["reason"] for one in said if one["type"] == "Recovering")


@pytest.fixture
def two():
    """Two jobs of which one at a time may start again; both are about to."""
    looks = Looks(script=interrupted)
    looks.worker.restarts_at_once = 1
    looks.create(recovery={"startTimeout": "8h"})
    looks.api.create(JOBS.format(namespace=NAMESPACE), job_object("other"))
    looks.player.held = {"bot-2-", "other-2-"}
    for _ in range(20):
        looks.settle()
        look_at_other(looks)
        if looks.status["attempt"] == status_of_other(looks)["attempt"] == 2:
            break
        looks.player.turn()
    assert not {"bot-2", "other-2"} & set(looks.children())
    looks.ahead += timedelta(minutes=2)
    return looks


def test_while_one_starts_another_waits_and_then_starts(two):
    two.settle()
    two.player.turn()
    two.settle()
    look_at_other(two)
    assert "bot-2" in two.children()
    assert why_other_recovers(two) == "WaitingForOtherRestarts"
    two.player.held = set()
    two.player.turn()
    two.player.turn()
    two.settle()
    look_at_other(two)
    assert "other-2" in two.children()


def test_a_start_that_the_cluster_refuses_holds_no_place(two):
    two.kube.refuse = lambda method, path: (
        403 if method == "POST" and path.endswith("jobs") else None
    )
    two.settle()
    assert two.conditions()["Recovering"][1] == "CreationForbidden"
    two.kube.refuse = lambda method, path: None
    look_at_other(two)
    assert "other-2" in two.children()


def test_a_start_without_an_answer_holds_no_place(two):
    two.kube.refuse = lambda method, path: (
        500 if method == "POST" and path.endswith("jobs") else None
    )
    with pytest.raises(Exception, match="refused by the test"):
        two.settle()
    two.kube.refuse = lambda method, path: None
    look_at_other(two)
    assert "other-2" in two.children()


def test_what_waits_for_room_holds_no_place(two):
    two.settle()
    two.player.turn()
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/bot-2-0-abcde/status"
    full = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    two.api.request("PATCH", path, {"status": {"conditions": [full]}})
    two.settle()
    assert two.conditions()["Recovering"][1] == "WaitingForRoom"
    look_at_other(two)
    assert "other-2" in two.children()


def test_what_a_queue_has_not_let_in_holds_no_place(two):
    two.settle()
    child = two.api.objects["jobs", NAMESPACE, "bot-2"]
    child["spec"]["suspend"] = True
    child["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpus"
    child["status"] = {}
    two.settle()
    assert two.conditions()["Queued"][1] == "Queued"
    look_at_other(two)
    assert "other-2" in two.children()


def test_a_job_that_is_suspended_while_it_starts_holds_no_place(two):
    two.settle()
    two.change(suspend=True)
    two.settle()
    two.player.turn()
    two.player.turn()
    two.settle()
    assert two.status["phase"] == "Suspended"
    look_at_other(two)
    assert "other-2" in two.children()


def test_a_job_that_is_being_removed_holds_no_place(two):
    two.settle()
    path = f"{JOBS.format(namespace=NAMESPACE)}/bot"
    two.api.request("DELETE", path, {"propagationPolicy": "Foreground"})
    two.settle()
    look_at_other(two)
    assert "other-2" in two.children()


def test_a_place_is_held_until_it_is_left_and_not_for_ever():
    places = Restarts()
    assert places.take("a", 2, NOW)
    assert places.take("b", 2, NOW + timedelta(seconds=30))
    assert not places.take("c", 2, NOW + timedelta(seconds=60))
    assert places.taken == 2
    assert places.take("a", 2, NOW + timedelta(seconds=60)), "its own"
    places.leave("b")
    places.leave("nobody")
    assert places.take("c", 2, NOW + timedelta(seconds=60))
    assert LONGEST == 600.0
    assert not places.take("d", 2, NOW + timedelta(seconds=599))
    assert places.take("d", 2, NOW + timedelta(seconds=600)), "that of a, since its first start"
    assert not places.take("e", 2, NOW + timedelta(seconds=601))
