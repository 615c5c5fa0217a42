"""What is done to a job while it lives, and to its operator, on a real API server.

The pods are played. Jobs that wait for the same time (a back-off of ten seconds) wait side by side.
"""

import time

import pytest

from harness.jobs import TOLD_OR_GONE, folder_of, playing
from harness.operator_driver import operator, wait_for
from harness.played_runs import Run, first_try_of
from harness.pod_player import PodPlayer

QUICK = ["--unreachable-seconds", "1", "--progress-seconds", "1"]


@pytest.fixture(autouse=True)
def _meanwhile(outage):
    """The long outage takes its time beside these tests; its own test waits for it."""


def taken(jobs, name, kind):
    return jobs.condition(name, kind)[:2] == ("False", "NameTaken")


def test_made_again_under_its_name_it_is_another_job(plane, api, jobs, tmp_path):
    """Deleted and made again while it prepares, while it trains, and after its success."""
    names = ("early", "middle", "late")
    player = PodPlayer(
        api,
        jobs.namespace,
        scripts={"early": first_try_of("prepare"), "middle": first_try_of("train")},
    )
    log = tmp_path / "operator.log"
    with playing(player), operator(plane.kubeconfig, jobs.namespace, log, *QUICK) as process:
        old = {name: jobs.submit(name) for name in names}
        wait_for(lambda: jobs.phase("early") == "Preparing", process)
        wait_for(lambda: jobs.phase("middle") == "Running", process)
        wait_for(lambda: jobs.outcome("late"), process)
        for child in ("middle-prepare", "late-prepare", "late-1"):  # their successors ran
            wait_for(lambda child=child: jobs.find("jobs", child) is None, process)
        for name in names:
            jobs.delete("finetunejobs", name)
        player.scripts.clear()
        new = {name: jobs.submit(name) for name in names}
        # Nobody has removed yet what the old jobs owned.
        wait_for(lambda: taken(jobs, "early", "Prepared"), process)
        wait_for(lambda: taken(jobs, "middle", "Running"), process)
        wait_for(lambda: taken(jobs, "late", "Running"), process)
        in_the_way = jobs.condition("early", "Prepared")[2]
        kept = {
            child: jobs.find("jobs", child)["metadata"]["ownerReferences"][0]["uid"]
            for child in ("early-prepare", "middle-1", "late-publish")
        }
        player.collects = True
        for name in names:
            wait_for(lambda name=name: jobs.outcome(name), process)
        counted = {name: jobs.counted(name) for name in names}
        events = {name: jobs.said(new[name], "WorkspaceReused") for name in names}
        outputs = {name: jobs.status(name)["output"]["uri"] for name in names}
        pods = api.get(jobs.path("pods"))["items"]

    assert kept == {
        "early-prepare": old["early"],
        "middle-1": old["middle"],
        "late-publish": old["late"],
    }
    assert in_the_way == (
        "Job early-prepare belongs to an earlier job of this name and goes with it"
    )
    assert counted == dict.fromkeys(names, ("Succeeded", 1, 0, 0))
    for name in names:
        folder = folder_of(name, old[name])
        assert events[name] == [f"the claim holds the folder of an earlier job too: {folder}"]
        assert outputs[name] == f"pvc://{name}-workspace/{folder_of(name, new[name])}/output"
    folders = {
        mount["subPath"]
        for pod in pods
        for mount in pod["spec"]["containers"][0]["volumeMounts"]
        if "subPath" in mount
    }
    assert folders == {folder_of(name, new[name]) for name in names}


def test_a_child_that_somebody_deletes_is_no_failure(plane, api, jobs, tmp_path):
    """Each way of deleting a child or its pod, in each stage: the work goes on."""
    held = {
        "background": "train",
        "foreground": "train",
        "orphaned": "train",
        "podless": "train",
        "reading": "prepare",
        "merging": "publish",
    }
    scripts = {name: first_try_of(stage) for name, stage in held.items()}
    player = PodPlayer(api, jobs.namespace, scripts=scripts)
    log = tmp_path / "operator.log"
    with playing(player), operator(plane.kubeconfig, jobs.namespace, log, *QUICK) as process:
        for name in held:
            jobs.submit(name)
        for name, stage in held.items():
            phase = {"train": "Running", "prepare": "Preparing", "publish": "Publishing"}[stage]
            wait_for(lambda name=name, phase=phase: jobs.phase(name) == phase, process)
        wait_for(lambda: "reading-prepare-0-abcde" in player.made, process)
        wait_for(lambda: "merging-publish-0-abcde" in player.made, process)
        time.sleep(1)
        jobs.delete("jobs", "background-1")
        jobs.delete("jobs", "foreground-1", "Foreground")
        jobs.delete("jobs", "orphaned-1", "Orphan")
        jobs.delete("pods", "podless-1-0-abcde")
        jobs.delete("jobs", "reading-prepare")
        jobs.delete("jobs", "merging-publish")
        wait_for(lambda: jobs.find("jobs", "orphaned-1") is None, process)
        time.sleep(12)  # longer than any back-off of a second attempt
        orphan = jobs.find("pods", "orphaned-1-0-abcde")
        beside = [name for name in player.made if name.startswith("orphaned-2")]
        del player.scripts["orphaned"]
        for name in held:
            wait_for(lambda name=name: jobs.outcome(name), process)
        counted = {name: jobs.counted(name) for name in held}
        causes = {name: jobs.causes(name) for name in held}

    assert orphan is not None
    assert "ownerReferences" not in orphan["metadata"]
    assert beside == []
    assert counted == {
        "background": ("Succeeded", 2, 0, 1),
        "foreground": ("Succeeded", 2, 0, 1),
        # Its process went on without its child, and reached its end.
        "orphaned": ("Succeeded", 1, 0, 0),
        "podless": ("Succeeded", 2, 0, 1),
        "reading": ("Succeeded", 1, 0, 1),
        "merging": ("Succeeded", 1, 0, 1),
    }
    assert causes["background"] in TOLD_OR_GONE
    assert causes["foreground"] in TOLD_OR_GONE
    assert causes["podless"] in TOLD_OR_GONE
    assert player.most_alive == dict.fromkeys(held, 1)


def test_a_suspend_that_is_not_ours_is_never_reverted(plane, api, jobs, tmp_path):
    """A queue takes its room back: a new child asks for it. A hand suspends: only it lets go on."""
    queue = {"kueue.x-k8s.io/queue-name": "gpus"}
    player = PodPlayer(api, jobs.namespace, first_try_of("train"))
    log = tmp_path / "operator.log"

    def suspend(child, value):
        jobs.change("jobs", child, {"spec": {"suspend": value}})

    def suspended(child):
        found = jobs.find("jobs", child)
        return found and found["spec"]["suspend"]

    with playing(player), operator(plane.kubeconfig, jobs.namespace, log, *QUICK) as process:
        jobs.submit("queued", labels=queue)
        jobs.submit("paused")
        wait_for(lambda: jobs.phase("queued") == "Queued", process)
        waits = jobs.condition("queued", "Queued")
        suspend("queued-1", False)
        for name in ("queued", "paused"):
            wait_for(lambda name=name: jobs.phase(name) == "Running", process)
            suspend(f"{name}-1", True)
        wait_for(lambda: jobs.condition("paused", "Recovering")[0] == "True", process)
        wait_for(lambda: suspended("queued-2"), process)
        rests = jobs.condition("paused", "Recovering")
        held = suspended("paused-1"), jobs.find("jobs", "paused-2")
        suspend("queued-2", False)
        suspend("paused-1", False)
        for name in ("queued", "paused"):
            wait_for(lambda name=name: jobs.outcome(name), process)

    assert waits == ("True", "Queued", "waiting to be admitted by queue gpus")
    assert rests == (
        "True",
        "SuspendedByOthers",
        "paused-1 was suspended by somebody else; training goes on when it is let go on, or"
        " deleted",
    )
    assert held == (True, None)
    for name in ("queued", "paused"):
        assert jobs.counted(name) == ("Succeeded", 2, 0, 1)
        assert jobs.causes(name) in TOLD_OR_GONE
        assert player.most_alive[name] == 1
    assert suspended("queued-1") is None
    assert suspended("paused-1") is None


def test_what_happens_while_no_operator_runs_is_met_by_the_next(plane, api, jobs, tmp_path):
    """Suspended, deleted, its status edited or taken away, its child or pod gone, ended unseen."""
    names = ("suspended", "deleted", "stripped", "edited", "childless", "ended", "failed")
    player = PodPlayer(api, jobs.namespace, first_try_of("train"))
    log = tmp_path / "operator.log"
    runs = Run()
    with playing(player):
        with operator(plane.kubeconfig, jobs.namespace, log, *QUICK) as process:
            uids = {name: jobs.submit(name) for name in names}
            for name in names:
                wait_for(lambda name=name: jobs.phase(name) == "Running", process)
        owned = {
            body["metadata"]["name"]: body["metadata"].get("ownerReferences", [{}])[0].get("uid")
            for plural in ("jobs", "configmaps", "persistentvolumeclaims")
            for body in api.get(jobs.path(plural))["items"]
            if body["metadata"]["name"].startswith("deleted")
        }
        jobs.change("finetunejobs", "suspended", {"spec": {"suspend": True}})
        jobs.delete("finetunejobs", "deleted")
        status = jobs.status("edited")
        forged = {"attempt": 7, "failures": 2, "child": {"kind": "Job", "name": "x", "uid": "y"}}
        jobs.change("finetunejobs", "edited", {"status": {**status, **forged}}, "status")
        jobs.change("finetunejobs", "stripped", {"status": None}, "status")
        jobs.delete("jobs", "childless-1")
        player.scripts["ended"] = lambda *_: runs
        player.scripts["failed"] = lambda stage, attempt, node: Run(
            exit_code=1 if attempt == 1 and stage == "train" else 0, step=40, checkpoint=40
        )
        player.collects = True
        finished = [lambda: jobs.find("jobs", "ended-1")["status"].get("completionTime")]
        finished += [lambda: jobs.find("jobs", "failed-1")["status"].get("failed")]
        finished += [lambda: jobs.find("pods", "childless-1-0-abcde") is None]
        finished += [lambda: jobs.find("pods", "deleted-1-0-abcde") is None]
        for one in finished:
            wait_for(one)
        jobs.delete("pods", "ended-1-0-abcde")  # with all that it said
        with operator(plane.kubeconfig, jobs.namespace, log, *QUICK) as process:
            wait_for(lambda: jobs.phase("suspended") == "Suspended", process)
            rests = jobs.status("suspended"), jobs.find("pods", "suspended-1-0-abcde")
            jobs.change("finetunejobs", "suspended", {"spec": {"suspend": False}})
            player.scripts["stripped"] = player.scripts["edited"] = lambda *_: runs
            for name in names:
                if name != "deleted":
                    wait_for(lambda name=name: jobs.outcome(name), process)
            left = [name for name in jobs.names("jobs") if name.startswith("deleted")]

    assert set(owned.values()) == {uids["deleted"], None}
    assert [name for name, owner in owned.items() if owner is None] == ["deleted-workspace"]
    assert left == []
    assert rests[0]["checkpoint"]["step"] == 30
    assert rests[1] is None
    counted = {name: jobs.counted(name) for name in names if name != "deleted"}
    assert counted == {
        "suspended": ("Succeeded", 2, 0, 0),
        # The ledger is gone: what runs saves and ends, and the job begins anew from what is there.
        "stripped": ("Succeeded", 1, 0, 0),
        "edited": ("Succeeded", 8, 2, 1),
        "childless": ("Succeeded", 2, 0, 1),
        "ended": ("Succeeded", 1, 0, 0),
        "failed": ("Succeeded", 2, 1, 0),
    }
    assert jobs.causes("childless") == [("LostInfrastructure", 30)]
    assert jobs.causes("failed") == [("Crashed", 40)]
    assert player.most_alive == dict.fromkeys(names, 1)


def test_two_operators_at_once_are_one_through_preemption_suspend_and_loss(
    plane, api, jobs, tmp_path
):
    """What either does the other finds done: one child at a time, nothing counted twice."""
    names = ("preempted", "suspended", "lost")
    player = PodPlayer(api, jobs.namespace, first_try_of("train"))
    logs = [tmp_path / "one.log", tmp_path / "other.log"]
    with (
        playing(player),
        operator(plane.kubeconfig, jobs.namespace, logs[0], *QUICK) as one,
        operator(plane.kubeconfig, jobs.namespace, logs[1], *QUICK) as other,
    ):
        for name in names:
            jobs.submit(name)
        for name in names:
            wait_for(lambda name=name: jobs.phase(name) == "Running", one)
        player.preempt("preempted-1-0-abcde")
        jobs.change("finetunejobs", "suspended", {"spec": {"suspend": True}})
        jobs.delete("jobs", "lost-1")
        wait_for(lambda: jobs.phase("suspended") == "Suspended", one)
        jobs.change("finetunejobs", "suspended", {"spec": {"suspend": False}})
        for name in names:
            wait_for(lambda name=name: jobs.outcome(name), one)
        assert not one.ended(), one.tail()
        assert not other.ended(), other.tail()

    assert {name: jobs.counted(name) for name in names} == {
        "preempted": ("Succeeded", 2, 0, 1),
        "suspended": ("Succeeded", 2, 0, 0),
        "lost": ("Succeeded", 2, 0, 1),
    }
    assert sorted(player.made) == sorted(
        f"{name}-{child}-0-abcde" for name in names for child in ("prepare", "1", "2", "publish")
    )
    assert player.most_alive == dict.fromkeys(names, 1)
