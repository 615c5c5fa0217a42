"""Objects that a job needs, in other hands: names, ConfigMaps, profiles, on a real API server."""

import json
import threading
import time

import pytest

from harness.control_plane import ApiError
from harness.jobs import MERGE, folder_of, playing
from harness.operator_driver import operator, wait_for
from harness.played_runs import Run, first_try_of
from harness.pod_player import PodPlayer

CONFIG = "finetune.dev/config"
QUICK = ["--unreachable-seconds", "1", "--progress-seconds", "1"]


@pytest.fixture(autouse=True)
def _meanwhile(outage):
    """The long outage takes its time beside these tests; its own test waits for it."""


def refused(call, *arguments):
    """Return what the API server says to a change that it refuses."""
    with pytest.raises(ApiError) as caught:
        call(*arguments)
    return caught.value


def template_of(jobs, child):
    return jobs.find("jobs", child)["spec"]["template"]


def resolved_of(jobs, child):
    """What a child's processes are told of the job."""
    return json.loads(template_of(jobs, child)["metadata"]["annotations"][CONFIG])["job"]


def test_what_has_the_name_is_left_alone_and_waited_for(plane, api, jobs, tmp_path):
    """A Job of nobody, one of another owner, one that is going, a Service."""
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
    before = {name: jobs.find("jobs", name)["metadata"]["uid"] for name in foreign}
    said = "exists and is not this job's; remove it, or give the job another name"
    expected = {
        "owned": ("Prepared", f"Job owned-prepare {said}"),
        "nobody": ("Running", f"Job nobody-1 {said}"),
        "going": ("Running", "Job going-publish is being removed; its name is needed"),
    }
    free = threading.Event()
    player = PodPlayer(
        api, jobs.namespace, scripts={"gang": lambda *_: Run(forever=not free.is_set())}
    )
    with playing(player), operator(plane.kubeconfig, jobs.namespace, log, *QUICK) as process:
        for name in expected:
            jobs.submit(name)
        service = folder_of("gang", jobs.submit("gang", resources={"nodes": 2}))
        expected["gang"] = ("Running", f"Service {service} {said}")
        wait_for(lambda: jobs.phase("gang") == "Preparing", process)
        body = {"metadata": {"name": service}, "spec": {"ports": [{"port": 80}]}}
        api.create(jobs.path("services"), body)
        free.set()
        for name, (kind, message) in expected.items():
            wanted = ("False", "NameTaken", message)
            wait_for(lambda n=name, k=kind, w=wanted: jobs.condition(n, k) == w, process)
        after = {name: jobs.find("jobs", name)["metadata"]["uid"] for name in foreign}
        made = list(player.made)
        jobs.delete("jobs", "owned-prepare")
        jobs.delete("jobs", "nobody-1")
        jobs.change("jobs", "going-publish", {"metadata": {"finalizers": None}})
        jobs.delete("services", service)
        for name in expected:
            wait_for(lambda name=name: jobs.outcome(name), process)

    assert after == before
    assert not [name for name in made if name.startswith(("owned-", "nobody-1", "gang-1"))]
    assert {jobs.counted(name) for name in expected} == {("Succeeded", 1, 0, 0)}
    assert player.most_alive == dict.fromkeys(expected, 1)


def test_what_a_tenant_does_to_the_config_maps_changes_no_training(plane, api, jobs, tmp_path):
    """Edited: refused. Deleted: written again. Made anew by hand: nothing goes on with it."""
    names = ("deleted", "forged", "queued")
    player = PodPlayer(api, jobs.namespace, first_try_of("train"))
    log = tmp_path / "operator.log"
    maps = {}

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
        # The operator is away, so that it cannot go by what it remembers.
        jobs.delete("configmaps", maps["deleted"] + "-resolved")
        remake(maps["forged"], "-resolved", faster)
        remake(maps["queued"], "-resolved", queued)
        with operator(plane.kubeconfig, jobs.namespace, log, *QUICK) as process:
            for name in ("forged", "queued"):
                wait_for(lambda n=name: jobs.condition(n, "Accepted")[0] == "False", process)
            lost = {name: jobs.condition(name, "Accepted") for name in ("forged", "queued")}
            for name in names:
                jobs.delete("pods", f"{name}-1-0-abcde")
            wait_for(lambda: jobs.outcome("deleted"), process)
            again = jobs.find("configmaps", maps["deleted"] + "-resolved")["data"]
            for name in ("forged", "queued"):
                jobs.delete("configmaps", maps[name] + "-resolved")
                wait_for(lambda name=name: jobs.outcome(name), process)

    assert edit.code == 422
    assert "immutable" in edit.message
    assert again == resolved
    for name in ("forged", "queued"):
        config = f"ConfigMap {maps[name]}-resolved"
        assert lost[name] == (
            "False",
            "ResolvedJobLost",
            f"{config} is not the one that was accepted: remove it",
        )
        assert jobs.counted(name) == ("Succeeded", 2, 0, 1)
    assert jobs.counted("deleted") == ("Succeeded", 2, 0, 1)


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
