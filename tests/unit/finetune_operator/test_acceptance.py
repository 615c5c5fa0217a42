"""What is not accepted, and what is fixed once it is; objects in memory."""

import json

import pytest

from finetune_api.document import digest_of
from finetune_operator import acceptance
from finetune_operator.kube import Forbidden
from harness.looks import CHILDREN, MAPS, NAMESPACE, PROFILES, Looks
from harness.operator_driver import JOBS
from harness.played_runs import Run, trains_forever


def test_a_job_with_mistakes_is_not_accepted_and_says_each():
    looks = Looks()
    looks.create(training={"learningRate": -1.0}, method={"lora": {"rank": 4}})

    assert looks.settle() is None
    status, reason, message = looks.conditions()["Accepted"]
    assert status == "False"
    assert reason[0].isupper() and reason.isalnum()
    assert "spec.training.learningRate" in message
    assert "spec.method.lora.rank" in message
    assert looks.status["phase"] == "Pending"
    assert looks.status["summary"]["reason"] == reason
    assert looks.children() == []
    writes = len(looks.api.writes)
    looks.settle()
    assert len(looks.api.writes) == writes


def test_a_profile_that_comes_later_lets_a_job_in():
    looks = Looks()
    profile = {"metadata": {"name": "small"}, "spec": {"allow": {"methods": ["full"]}}}
    looks.api.create(PROFILES, profile)
    looks.create()
    looks.settle()

    assert looks.conditions()["Accepted"][1] == "ProfileMissing"
    assert looks.worker.unaccepted == {looks.key}

    annotations = {"finetune.dev/is-default-profile": "true"}
    good = {"metadata": {"name": "open", "annotations": annotations}, "spec": {}}
    looks.api.create(PROFILES, good)
    looks.profiles.changed()
    looks.settle()

    assert looks.conditions()["Accepted"][0] == "True"
    assert looks.worker.unaccepted == set()
    assert looks.live()["outcome"] == "Succeeded"


def test_without_an_image_nothing_starts():
    looks = Looks(image="")
    looks.create()
    looks.settle()

    assert looks.conditions()["Accepted"][1] == "TrainerImageMissing"
    assert looks.children() == []


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("exceeded quota: small, requested: count/configmaps=1", "QuotaExceeded"),
        ('cannot create resource "configmaps"', "RightMissing"),
    ],
)
def test_a_namespace_without_room_for_the_resolved_job_is_no_missing_right(message, reason):
    looks = Looks()
    looks.create()

    def refuse(method, path):
        if method == "POST" and path == MAPS:
            raise Forbidden(403, message, "Forbidden")

    looks.kube.refuse = refuse
    assert looks.settle() == 30.0
    assert looks.conditions()["Accepted"] == ("False", reason, f"403 Forbidden: {message}")
    looks.kube.refuse = lambda method, path: None
    assert looks.live()["outcome"] == "Succeeded"


def test_a_status_that_cannot_be_read_hurts_that_job_alone():
    looks = Looks()
    body = looks.create()
    body["status"] = {"attempt": -3}
    looks.api.request("PUT", f"{JOBS.format(namespace=NAMESPACE)}/bot/status", body)

    assert looks.look() is None
    assert looks.children() == []
    events = looks.api.get(f"/api/v1/namespaces/{NAMESPACE}/events")["items"]
    assert [event["reason"] for event in events] == ["StatusUnreadable"]


def test_a_resolved_job_that_was_deleted_is_written_again():
    looks = Looks(script=trains_forever)
    looks.create()
    looks.train()
    name = looks.status["resolved"]["configMap"]
    before = looks.api.get(f"{MAPS}/{name}")["data"]
    looks.api.request("DELETE", f"{MAPS}/{name}")
    looks.restart()
    looks.settle()

    assert looks.api.get(f"{MAPS}/{name}")["data"] == before
    assert looks.status["phase"] == "Running"


def test_a_resolved_job_that_was_exchanged_counts_for_nothing():
    looks = Looks(script=trains_forever)
    looks.create()
    looks.train()
    name = looks.status["resolved"]["configMap"]
    stored = looks.api.objects[("configmaps", NAMESPACE, name)]
    job = json.loads(stored["data"]["job.json"])
    job["spec"]["training"]["learningRate"] = 0.5
    stored["data"]["job.json"] = json.dumps(job)
    looks.restart()

    assert looks.settle() == 30.0
    assert looks.conditions()["Accepted"][:2] == ("False", "ResolvedJobLost")
    assert looks.api.get(f"{CHILDREN}/bot-1")["metadata"].get("deletionTimestamp") is None


def test_a_resolved_job_made_by_somebody_else_is_not_believed():
    looks = Looks()
    body = looks.create()
    owner = {"apiVersion": "v1", "kind": "x", "name": "bot", "uid": body["metadata"]["uid"]}
    forged = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "bot-00000000-resolved", "ownerReferences": [owner]},
        "data": {"job.json": "{}", "queue.json": "{}"},
    }
    looks.api.create(MAPS, forged)
    looks.settle()

    looks.settle()

    assert looks.conditions()["Accepted"][:2] == ("True", "Accepted")
    assert looks.status["resolved"]["digest"] != digest_of({})
    assert looks.live()["outcome"] == "Succeeded"


def test_a_profile_that_goes_takes_nothing_from_a_job_that_runs():
    """What runs goes on; nothing starts before the profile is back."""
    looks = Looks(script=trains_forever)
    annotations = {"finetune.dev/is-default-profile": "true"}
    profile = {"metadata": {"name": "p", "annotations": annotations}}
    profile["spec"] = {"platform": {"podLabels": {"team": "blue"}}}
    looks.api.create(PROFILES, profile)
    looks.create()
    looks.train()
    looks.api.request("DELETE", f"{PROFILES}/p")
    looks.restart()
    looks.settle()

    assert looks.status["phase"] == "Running"
    looks.player.script = lambda *_: Run()
    for _ in range(4):
        looks.turn()
    assert looks.status["phase"] == "Publishing"
    assert looks.conditions()["Running"] == (
        "False",
        "ProfileMissing",
        "FineTuneProfile p, with which the job was accepted, does not exist any more or is not"
        " valid; bring it back",
    )
    assert "bot-publish" not in looks.children()
    looks.api.create(PROFILES, profile)
    looks.profiles.changed()
    assert looks.live()["outcome"] == "Succeeded"
    template = looks.api.get(f"{CHILDREN}/bot-publish")["spec"]["template"]
    assert template["metadata"]["labels"]["team"] == "blue"


def test_accepted_jobs_that_are_remembered_are_bounded_by_bytes(monkeypatch):
    """What was dropped is read again, and the job goes on."""
    monkeypatch.setattr(acceptance, "ROOM", 1000)
    looks = Looks()
    looks.create()
    assert looks.live()["outcome"] == "Succeeded"
    assert len(looks.worker.acceptance._known) == 0

    monkeypatch.undo()
    looks = Looks()
    looks.create()
    assert looks.live()["outcome"] == "Succeeded"
    assert len(looks.worker.acceptance._known) == 1
