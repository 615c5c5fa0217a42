"""However often a job begins again, what was made for it stays the same few objects."""

import pytest

from harness.looks import CLAIMS, MAPS, NAMESPACE, Looks
from harness.memory_api import Crash
from harness.operator_driver import JOBS
from harness.played_runs import Run, trains_forever

SERVICES = f"/api/v1/namespaces/{NAMESPACE}/services"


def gang(script=trains_forever):
    """A job of two nodes, which has a Service for each attempt."""
    looks = Looks(script=script)
    claim = {"metadata": {"name": "shared"}, "spec": {"accessModes": ["ReadWriteMany"]}}
    looks.api.create(CLAIMS, claim)
    looks.create(resources={"nodes": 2}, workspace={"claimName": "shared"})
    return looks


def stop(looks, turns=4):
    looks.change(suspend=True)
    for _ in range(turns):
        looks.turn()
    looks.settle()
    assert looks.status["phase"] == "Suspended"


def resume(looks):
    looks.change(suspend=False)
    for _ in range(4):
        looks.turn()
    looks.settle()
    assert looks.status["phase"] == "Running"


def beside(looks):
    """Return what was made for the job beside its children and their pods."""
    made = [looks.api.get(kind)["items"] for kind in (MAPS, SERVICES)]
    return [sorted(one["metadata"]["name"] for one in found) for found in made]


def folder(looks):
    job = looks.api.get(f"{JOBS.format(namespace=NAMESPACE)}/bot")
    return f"bot-{job['metadata']['uid'].replace('-', '')[:8]}"


def one_of_each(looks):
    name = folder(looks)
    return [[f"{name}-resolved"], [name]]


def test_after_six_rounds_of_suspend_and_resume_nothing_has_gathered():
    looks = gang()
    looks.train()
    for _ in range(6):
        stop(looks)
        resume(looks)

    assert looks.status["attempt"] == 7
    assert beside(looks) == one_of_each(looks)
    assert looks.children() == ["bot-7"]


def test_preparations_that_are_stopped_leave_nothing():
    looks = Looks(script=lambda stage, *_: Run(forever=True))
    looks.create()
    looks.turn()
    for _ in range(3):
        looks.turn()
        stop(looks)
        looks.change(suspend=False)
        looks.turn()
    looks.turn()
    looks.settle()
    assert looks.status["tries"] == 4
    assert beside(looks) == [[f"{folder(looks)}-resolved"], []]


def test_a_service_that_somebody_removed_is_there_for_the_next_attempt():
    looks = gang()
    looks.train()
    looks.api.request("DELETE", f"{SERVICES}/{folder(looks)}")
    stop(looks)
    resume(looks)
    assert beside(looks) == one_of_each(looks)


def test_a_service_of_somebody_else_is_said_and_left_alone():
    looks = gang()
    foreign = {"metadata": {"name": folder(looks)}, "spec": {"clusterIP": "None"}}
    looks.api.create(SERVICES, foreign)
    for _ in range(12):
        looks.turn()
    reason, said = looks.conditions()["Running"][1:]
    assert reason == "NameTaken"
    assert said == (
        f"Service {folder(looks)} exists and is not this job's; remove it, or give the job"
        " another name"
    )
    assert looks.children() == ["bot-prepare"]


def round_trip(looks):
    """Two attempts that are stopped, and a third that runs; crashes are followed by a new worker."""
    for suspend, turns in ((True, 5), (False, 4), (True, 5), (False, 6)):
        looks.change(suspend=suspend)
        for _ in range(turns):
            for _ in range(5):
                try:
                    looks.turn()
                    break
                except Crash:
                    looks.restart()


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_each_write_it_leaves_the_same(when):
    looks = gang()
    looks.train()
    begun = looks.kube.count
    round_trip(looks)
    total = looks.kube.count - begun
    assert total > 20
    for number in range(1, total + 1):
        looks = gang()
        looks.train()
        looks.kube.crash_at = (when, looks.kube.count + number)
        round_trip(looks)
        assert looks.status["attempt"] == 3, f"killed {when} write {number}"
        assert beside(looks) == one_of_each(looks), f"killed {when} write {number}"
