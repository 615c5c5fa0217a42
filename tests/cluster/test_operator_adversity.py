"""What users, tenants and clusters do to a job while it lives, on a real API server.

The pods are played. Jobs that wait for the same time (a back-off of ten seconds) wait side by side.
"""

import json
import time

import pytest

from harness.control_plane import ApiError
from harness.jobs import MERGE, Jobs, playing
from harness.operator_driver import make_namespace, operator, wait_for
from harness.pod_player import PodPlayer, Run

QUICK = ["--unreachable-seconds", "1", "--progress-seconds", "1"]


@pytest.fixture(autouse=True)
def _meanwhile(outage):
    """The long outage takes its time beside these tests; its own test waits for it."""


@pytest.fixture
def jobs(api, definitions, request):
    del definitions
    name = request.node.name.replace("_", "-")[-40:].strip("-")
    return Jobs(api, make_namespace(api, name))


def first_try_of(held):
    """The first try of one stage goes on until it is told to end; all else ends well at once."""
    return lambda stage, attempt, node: Run(forever=stage == held and attempt == 1)


def folder_of(name, uid):
    return f"{name}-{uid.replace('-', '')[:8]}"


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
        player.scripts.clear()
        for name in names:
            jobs.delete("finetunejobs", name)
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
        "ConfigMap early-prepare-config belongs to an earlier job of this name and goes with it"
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
    assert causes["background"] == [("Preempted", 30)]
    assert causes["foreground"] == [("Preempted", 30)]
    assert causes["podless"] == [("Preempted", 30)]
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
        assert jobs.causes(name) == [("Preempted", 30)]
        assert player.most_alive[name] == 1
    assert suspended("queued-1") is None
    assert suspended("paused-1") is None


def test_what_has_the_name_is_left_alone_and_waited_for(plane, api, jobs, tmp_path):
    """A Job of nobody, one of another owner, one that is going, a Service, a ConfigMap."""
    log = tmp_path / "operator.log"
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "controller": True}
    owner["uid"] = "00000000-0000-4000-8000-00000000000f"
    foreign = {
        "owned-prepare": {"ownerReferences": [owner]},
        "nobody-1": {},
        "going-publish": {"finalizers": ["example.com/slow"]},
    }
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "example.com/c"}]}
    for name, metadata in foreign.items():
        body = {"metadata": {"name": name, **metadata}}
        body["spec"] = {"suspend": True, "template": {"spec": pod}}
        api.create(jobs.path("jobs"), body)
    jobs.delete("jobs", "going-publish")
    service = {"metadata": {"name": "gang-1"}, "spec": {"ports": [{"port": 80}]}}
    api.create(jobs.path("services"), service)
    api.create(jobs.path("configmaps"), {"metadata": {"name": "config-1-config"}, "data": {}})
    before = {name: jobs.find("jobs", name)["metadata"]["uid"] for name in foreign}
    said = "exists and is not this job's; remove it, or give the job another name"
    expected = {
        "owned": ("Prepared", f"Job owned-prepare {said}"),
        "nobody": ("Running", f"Job nobody-1 {said}"),
        "going": ("Running", "Job going-publish is being removed; its name is needed"),
        "gang": ("Running", f"Service gang-1 {said}"),
        "config": ("Running", f"ConfigMap config-1-config {said}"),
    }
    player = PodPlayer(api, jobs.namespace)
    with playing(player), operator(plane.kubeconfig, jobs.namespace, log, *QUICK) as process:
        for name in expected:
            jobs.submit(name, resources={"nodes": 2} if name == "gang" else {})
        for name, (kind, message) in expected.items():
            wanted = ("False", "NameTaken", message)
            wait_for(lambda n=name, k=kind, w=wanted: jobs.condition(n, k) == w, process)
        after = {name: jobs.find("jobs", name)["metadata"]["uid"] for name in foreign}
        made = list(player.made)
        jobs.delete("jobs", "owned-prepare")
        jobs.delete("jobs", "nobody-1")
        jobs.change("jobs", "going-publish", {"metadata": {"finalizers": None}})
        jobs.delete("services", "gang-1")
        jobs.delete("configmaps", "config-1-config")
        for name in expected:
            wait_for(lambda name=name: jobs.outcome(name), process)

    assert after == before
    assert not [name for name in made if name.startswith(("owned-", "nobody-1", "gang-1"))]
    assert {jobs.counted(name) for name in expected} == {("Succeeded", 1, 0, 0)}
    assert player.most_alive == dict.fromkeys(expected, 1)


def refused(call, *arguments):
    """Return what the API server says to a change that it refuses."""
    with pytest.raises(ApiError) as caught:
        call(*arguments)
    return caught.value


def test_what_a_tenant_does_to_the_config_maps_changes_no_training(plane, api, jobs, tmp_path):
    """Edited: refused. Deleted: written again. Made anew by hand: nothing goes on with it."""
    names = ("deleted", "forged", "found", "child")
    player = PodPlayer(api, jobs.namespace, first_try_of("train"))
    log = tmp_path / "operator.log"
    maps, missing = {}, "PreparationMissing"

    def remake(name, suffix, change):
        """Replace a ConfigMap by one of other content that says it is the operator's."""
        body = jobs.find("configmaps", name + suffix)
        kept = {key: body["metadata"][key] for key in ("name", "labels", "ownerReferences")}
        change(body["data"])
        jobs.delete("configmaps", name + suffix)
        api.create(jobs.path("configmaps"), {**body, "metadata": kept})

    def faster(data):
        job = json.loads(data["job.json"])
        job["spec"]["training"]["learningRate"] = 0.5
        data["job.json"] = json.dumps(job)

    def queued(data):
        data["queue.json"] = json.dumps({"kueue.x-k8s.io/queue-name": "not-theirs"})

    def another(data):
        report = json.loads(data["report.json"])
        report["choices"]["globalBatchSize"] = 32
        data["report.json"] = json.dumps(report)

    with playing(player):
        with operator(plane.kubeconfig, jobs.namespace, log, *QUICK) as process:
            uids = {name: jobs.submit(name) for name in names}
            maps = {name: folder_of(name, uid) for name, uid in uids.items()}
            for name in names:
                wait_for(lambda name=name: jobs.phase(name) == "Running", process)
            resolved = jobs.find("configmaps", maps["deleted"] + "-resolved")["data"]
            edit = refused(
                jobs.change, "configmaps", maps["deleted"] + "-resolved", {"data": {"job.json": ""}}
            )
            jobs.delete("configmaps", "child-1-config")
            report = jobs.find("configmaps", maps["found"] + "-prepared")["data"]
            wait_for(lambda: jobs.find("pods", "found-prepare-0-abcde") is None, process)
        # The operator is away, so that it cannot go by what it remembers.
        jobs.delete("configmaps", maps["deleted"] + "-resolved")
        remake(maps["forged"], "-resolved", faster)
        remake(maps["found"], "-prepared", another)
        remake(maps["child"], "-resolved", queued)
        with operator(plane.kubeconfig, jobs.namespace, log, *QUICK) as process:
            for name in ("forged", "child"):
                wait_for(lambda n=name: jobs.condition(n, "Accepted")[0] == "False", process)
            lost = {name: jobs.condition(name, "Accepted") for name in ("forged", "child")}
            for name in names:
                jobs.delete("pods", f"{name}-1-0-abcde")
            wait_for(lambda: jobs.outcome("deleted"), process)
            wait_for(lambda: jobs.condition("found", "Recovering")[1] == missing, process)
            unread = jobs.condition("found", "Recovering"), list(player.made)
            remake(maps["found"], "-prepared", lambda data: data.update(report))
            wait_for(lambda: jobs.outcome("found"), process)
            again = jobs.find("configmaps", maps["deleted"] + "-resolved")["data"]
            for name in ("forged", "child"):
                jobs.delete("configmaps", maps[name] + "-resolved")
                wait_for(lambda name=name: jobs.outcome(name), process)

    assert edit.code == 422
    assert "immutable" in edit.message
    assert again == resolved
    for name in ("forged", "child"):
        config = f"ConfigMap {maps[name]}-resolved"
        assert lost[name] == (
            "False",
            "ResolvedJobLost",
            f"{config} is not the one that was accepted: remove it",
        )
        assert jobs.counted(name) == ("Succeeded", 2, 0, 1)
    assert unread[0] == (
        "True",
        "PreparationMissing",
        "what preparation found is gone, or is not what it was: bring it back from a copy, or"
        " create the job again",
    )
    assert "found-2-0-abcde" not in unread[1]
    assert jobs.counted("found") == jobs.counted("deleted") == ("Succeeded", 2, 0, 1)


def template_of(jobs, child):
    return jobs.find("jobs", child)["spec"]["template"]


def resolved_of(jobs, child):
    """What a child's processes are told of the job."""
    data = jobs.find("configmaps", f"{child}-config")["data"]["job.json"]
    return json.loads(data)["job"]


def test_a_profile_that_changes_places_the_next_attempt_and_changes_no_training(
    plane, api, jobs, tmp_path
):
    """Changed: the next attempt runs elsewhere. Removed: what runs goes on, nothing new starts."""
    profiles = "/apis/finetune.dev/v1alpha1/finetuneprofiles"

    def profile(team, epochs):
        defaults = {"training": {"epochs": epochs}}
        platform = {"podLabels": {"team": team}, "zones": [f"zone-{team}"]}
        spec = {"defaults": defaults, "platform": platform}
        return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneProfile", "spec": spec}

    names = ("moved", "removed")
    for name in names:
        body = {**profile("blue", 2), "metadata": {"name": f"adversity-{name}"}}
        api.create(profiles, body)
    player = PodPlayer(api, jobs.namespace, first_try_of("train"))
    log = tmp_path / "operator.log"
    with playing(player), operator(plane.kubeconfig, jobs.namespace, log, *QUICK) as process:
        for name in names:
            jobs.submit(name, profileRef={"name": f"adversity-{name}"})
        for name in names:
            wait_for(lambda name=name: jobs.phase(name) == "Running", process)
        patch = {"spec": profile("red", 5)["spec"]}
        api.request("PATCH", f"{profiles}/adversity-moved", patch, MERGE)
        api.delete(f"{profiles}/adversity-removed")
        time.sleep(2)
        runs = [jobs.phase(name) for name in names]
        first = template_of(jobs, "moved-1"), resolved_of(jobs, "moved-1")
        for name in names:
            player.preempt(f"{name}-1-0-abcde")
        wait_for(lambda: jobs.condition("removed", "Recovering")[1] == "ProfileMissing", process)
        waits = jobs.condition("removed", "Recovering"), list(player.made)
        wait_for(lambda: jobs.outcome("moved"), process)
        second = template_of(jobs, "moved-publish"), resolved_of(jobs, "moved-publish")
        api.create(profiles, {**profile("green", 3), "metadata": {"name": "adversity-removed"}})
        wait_for(lambda: jobs.outcome("removed"), process)
        last = template_of(jobs, "removed-publish"), resolved_of(jobs, "removed-publish")

    for name in names:
        api.delete(f"{profiles}/adversity-{name}")
    assert runs == ["Running", "Running"]
    assert waits[0] == (
        "True",
        "ProfileMissing",
        "FineTuneProfile adversity-removed, with which the job was accepted, does not exist any"
        " more or is not valid; bring it back",
    )
    assert "removed-2-0-abcde" not in waits[1]
    seen = ((first, "blue"), (second, "red"), (last, "green"))
    for (template, resolved), team in seen:
        assert template["metadata"]["labels"]["team"] == team
        assert f"zone-{team}" in json.dumps(template["spec"]["affinity"])
        assert resolved["spec"]["training"]["epochs"] == 2
    assert first[1] == second[1]
    assert [jobs.counted(name) for name in names] == [("Succeeded", 2, 0, 1)] * 2


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
        # The ledger of its attempts is gone; what runs is taken up again, and nothing runs twice.
        "stripped": ("Succeeded", 1, 0, 0),
        "edited": ("Succeeded", 8, 2, 1),
        "childless": ("Succeeded", 2, 0, 1),
        "ended": ("Succeeded", 1, 0, 0),
        "failed": ("Succeeded", 2, 1, 0),
    }
    assert jobs.causes("childless") == [("LostInfrastructure", 30)]
    assert jobs.causes("failed") == [("Crashed", 40)]
    assert player.most_alive == dict.fromkeys(names, 1)


def test_a_failure_policy_would_count_pods_only_when_they_are_gone(api, jobs):
    """Why our Jobs have none (docs/decisions/008): beside one the API server wants ``Failed``."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "example.com/c"}]}
    rules = [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [10]}}]
    spec = {
        "suspend": True,
        "backoffLimit": 0,
        "podReplacementPolicy": "TerminatingOrFailed",
        "podFailurePolicy": {"rules": rules},
        "template": {"spec": pod},
    }
    body = {"metadata": {"name": "gang"}, "spec": spec}
    said = refused(api.create, jobs.path("jobs"), body)
    del spec["podReplacementPolicy"]
    made = api.create(jobs.path("jobs"), body)

    assert said.code == 422
    assert "podReplacementPolicy" in said.message
    assert made["spec"]["podReplacementPolicy"] == "Failed"


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
