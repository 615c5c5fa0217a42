"""What users, tenants and clusters do to a job while it lives; objects in memory."""

import json
from datetime import timedelta

import pytest

from finetune_api.document import digest_of
from finetune_operator.kube import Unavailable
from harness.looks import NAMESPACE, Looks
from harness.memory_api import MemoryApi
from harness.operator_driver import JOBS
from harness.pod_player import Run

CLAIMS = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
CHILDREN = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PROFILES = "/apis/finetune.dev/v1alpha1/finetuneprofiles"


def forever(stage, attempt, node):
    del attempt, node
    return Run(forever=stage == "train")


def running(looks):
    """Bring a job to where it trains."""
    for _ in range(12):
        looks.turn()
    looks.settle()
    assert looks.status["phase"] == "Running"


# What is not accepted


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


def test_a_status_that_cannot_be_read_hurts_that_job_alone():
    looks = Looks()
    body = looks.create()
    body["status"] = {"attempt": -3}
    looks.api.request("PUT", f"{JOBS.format(namespace=NAMESPACE)}/bot/status", body)

    assert looks.look() is None
    assert looks.children() == []
    events = looks.api.get(f"/api/v1/namespaces/{NAMESPACE}/events")["items"]
    assert [event["reason"] for event in events] == ["StatusUnreadable"]


# What is fixed at acceptance


def test_a_resolved_job_that_was_deleted_is_written_again():
    looks = Looks(script=forever)
    looks.create()
    running(looks)
    name = looks.status["resolved"]["configMap"]
    before = looks.api.get(f"{MAPS}/{name}")["data"]
    looks.api.request("DELETE", f"{MAPS}/{name}")
    looks.restart()
    looks.settle()

    assert looks.api.get(f"{MAPS}/{name}")["data"] == before
    assert looks.status["phase"] == "Running"


def test_a_resolved_job_that_was_exchanged_counts_for_nothing():
    looks = Looks(script=forever)
    looks.create()
    running(looks)
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
    looks = Looks(script=lambda stage, *_: Run(forever=stage == "train"))
    annotations = {"finetune.dev/is-default-profile": "true"}
    profile = {"metadata": {"name": "p", "annotations": annotations}}
    profile["spec"] = {"platform": {"podLabels": {"team": "blue"}}}
    looks.api.create(PROFILES, profile)
    looks.create()
    running(looks)
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


# Names and volumes


def test_a_child_of_somebody_else_is_left_alone():
    looks = Looks()
    looks.create()
    foreign = {"kind": "Job", "metadata": {"name": "bot-prepare"}, "spec": {"parallelism": 1}}
    made = looks.api.create(CHILDREN, foreign)

    assert looks.settle() == 30.0
    assert looks.conditions()["Prepared"] == (
        "False",
        "NameTaken",
        "Job bot-prepare exists and is not this job's; remove it, or give the job another name",
    )
    assert looks.api.get(f"{CHILDREN}/bot-prepare")["metadata"]["uid"] == made["metadata"]["uid"]
    looks.api.request("DELETE", f"{CHILDREN}/bot-prepare")
    assert looks.live()["outcome"] == "Succeeded"


def test_a_workspace_of_somebody_else_is_left_alone():
    looks = Looks()
    looks.create()
    looks.api.create(
        CLAIMS, {"kind": "PersistentVolumeClaim", "metadata": {"name": "bot-workspace"}, "spec": {}}
    )

    assert looks.settle() == 30.0
    assert looks.conditions()["Prepared"][1] == "WorkspaceTaken"
    assert looks.status["summary"]["reason"] == "WorkspaceTaken"
    assert looks.children() == []


def test_a_claim_that_is_missing_is_named_and_waited_for():
    looks = Looks()
    looks.create(workspace={"claimName": "mine"})

    assert looks.settle() == 30.0
    assert looks.conditions()["Prepared"][1:] == (
        "WorkspaceMissing",
        "claim mine does not exist; create it",
    )
    claim = {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "mine"},
        "spec": {"accessModes": ["ReadWriteOnce"]},
    }
    looks.api.create(CLAIMS, claim)
    assert looks.live()["outcome"] == "Succeeded"


def test_a_job_that_is_made_again_uses_its_claim_and_starts_afresh():
    looks = Looks()
    looks.create()
    looks.live()
    old = looks.api.get(f"{CLAIMS}/bot-workspace")["metadata"]["uid"]
    for kind, plural in (("jobs", CHILDREN), ("configmaps", MAPS)):
        del kind
        for body in looks.api.get(plural)["items"]:
            looks.api.request("DELETE", f"{plural}/{body['metadata']['name']}")
    looks.player.turn()
    looks.api.request("DELETE", f"{JOBS.format(namespace=NAMESPACE)}/bot")
    looks.settle()
    looks.create()
    status = looks.live()

    assert status["outcome"] == "Succeeded"
    assert status["attempt"] == 1
    assert looks.api.get(f"{CLAIMS}/bot-workspace")["metadata"]["uid"] == old
    reasons = [
        e["reason"] for e in looks.api.get(f"/api/v1/namespaces/{NAMESPACE}/events")["items"]
    ]
    assert "WorkspaceReused" in reasons


# Stops


def test_suspend_saves_and_resume_counts_as_nothing():
    looks = Looks(
        script=lambda stage, attempt, node: Run(forever=stage == "train" and attempt == 1)
    )
    looks.create()
    running(looks)
    looks.change(suspend=True)
    for _ in range(4):
        looks.turn()
    looks.settle()

    assert looks.status["phase"] == "Suspended"
    assert looks.status["checkpoint"]["step"] == 30
    assert not [name for name in looks.children() if name == "bot-1"]
    looks.change(suspend=False)
    status = looks.live()
    assert status["outcome"] == "Succeeded"
    assert (status["attempt"], status["failures"], status["preemptions"]) == (2, 0, 0)
    assert [(r["cause"], r["fromStep"]) for r in status["resumes"]] == [("Stopped", 30)]
    assert status["suspensions"] == 1
    assert "restarts" not in status["summary"]


def test_the_cause_is_in_status_before_a_child_is_told_to_end():
    looks = Looks(script=forever)
    looks.create()
    running(looks)
    looks.change(suspend=True)
    writes = len(looks.api.writes)
    looks.look()
    assert looks.status["stopping"] == "Stopped"
    assert [write for write in looks.api.writes[writes:] if "event" not in write] == [
        "status finetunejobs bot",
        "delete jobs bot-1",
    ]
    assert looks.api.get(f"{CHILDREN}/bot-1")["metadata"]["deletionTimestamp"]


def test_the_deadline_ends_it():
    looks = Looks(script=forever)
    looks.create(activeDeadlineSeconds=600)
    running(looks)
    looks.ahead += timedelta(seconds=700)
    status = looks.live()

    assert status["outcome"] == "Failed"
    assert status["lastFailure"]["class"] == "DeadlineExceeded"


def test_its_time_over_the_job_is_removed():
    looks = Looks()
    looks.create(ttlSecondsAfterFinished=100)
    looks.live()
    wait = looks.settle()

    assert 0 < wait <= 101
    looks.ahead += timedelta(seconds=102)
    assert looks.look() is None
    assert not looks.api.get(JOBS.format(namespace=NAMESPACE))["items"]
    assert looks.look() is None


def test_a_failed_job_is_tried_again_when_asked_to():
    codes = iter([11, 0])
    looks = Looks(script=lambda stage, *_: Run(exit_code=next(codes) if stage == "prepare" else 0))
    looks.create()
    status = looks.live()
    assert (status["outcome"], status["lastFailure"]["class"]) == ("Failed", "InvalidData")
    assert looks.player.made == ["bot-prepare-0-abcde"]

    looks.change(recovery={"retryGeneration": 1})
    status = looks.live()
    assert status["outcome"] == "Succeeded"
    assert looks.player.made[1] == "bot-prepare-2-0-abcde"


# Loss


def test_a_child_that_was_deleted_is_lost_infrastructure():
    looks = Looks(
        script=lambda stage, attempt, node: Run(forever=stage == "train" and attempt == 1)
    )
    looks.create()
    running(looks)
    looks.api.request("DELETE", f"{CHILDREN}/bot-1")
    looks.look()
    assert looks.status["attempt"] == 1, "its pod still runs"
    status = looks.live()

    assert status["outcome"] == "Succeeded"
    assert (status["attempt"], status["failures"], status["preemptions"]) == (2, 0, 1)
    assert looks.player.most_alive == {"bot": 1}


def test_a_pod_that_is_gone_is_remembered_as_it_ended():
    looks = Looks(script=forever)
    looks.create()
    running(looks)
    pod = looks.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods/bot-1-0-abcde")
    looks.player._terminate(pod, Run(exit_code=13, step=12, checkpoint=None))
    looks.api.request(
        "DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods/bot-1-0-abcde", {"gracePeriodSeconds": 0}
    )
    looks.api.request(
        "PATCH",
        f"{CHILDREN}/bot-1/status",
        {"status": {"conditions": [{"type": "Failed", "status": "True"}]}},
    )
    looks.settle()

    assert looks.status["outcome"] == "Failed"
    assert looks.status["lastFailure"]["class"] == "NonFiniteLoss"
    assert looks.status["lastFailure"]["exitCode"] == 13


# The cluster


@pytest.mark.parametrize(
    ("message_code", "reason"), [(403, "CreationForbidden"), (422, "CreationRefused")]
)
def test_what_the_cluster_refuses_is_a_condition(message_code, reason):
    looks = Looks()
    looks.create()
    looks.kube.refuse = lambda method, path: (
        message_code if method == "POST" and path.endswith("/jobs") else None
    )

    assert looks.settle() == 30.0
    assert looks.conditions()["Prepared"] == ("False", reason, "refused by the test")
    looks.kube.refuse = lambda method, path: None
    assert looks.live()["outcome"] == "Succeeded"


def test_no_answer_is_raised_and_nothing_is_lost():
    looks = Looks()
    looks.create()
    looks.kube.refuse = lambda method, path: 503 if method == "POST" else None
    with pytest.raises(Unavailable):
        looks.settle()
    looks.kube.refuse = lambda method, path: None

    assert looks.live()["outcome"] == "Succeeded"


def test_the_backend_is_what_the_cluster_has_and_stays():
    looks = Looks(api=MemoryApi(pytorch=True), script=lambda *_: Run())
    looks.create()
    looks.settle()

    assert looks.status["backend"] == "PyTorchJob"


def test_a_backend_that_is_missing_is_waited_for():
    looks = Looks()
    looks.create(backend="PyTorchJob")

    assert looks.settle() == 30.0
    assert looks.conditions()["Prepared"][1:] == (
        "BackendMissing",
        "this cluster has no PyTorchJob; install it, or leave spec.backend out",
    )


def test_two_operators_at_once_are_one():
    one = Looks(
        script=lambda stage, attempt, node: Run(
            exit_code=143 if attempt == 1 and stage == "train" else 0
        )
    )
    one.create()
    other = Looks.__new__(Looks)
    other.__dict__ |= one.__dict__
    other.restart()
    turn = 0

    class Both:
        """Looks with one and the other by turns."""

        async def look(self, key):
            nonlocal turn
            turn += 1
            return await (one_worker, other.worker)[turn % 2].look(key)

    one_worker = one.worker
    one.worker = Both()
    status = one.live()

    assert status["outcome"] == "Succeeded"
    assert (status["attempt"], status["preemptions"]) == (2, 1)
    assert one.player.made == [
        "bot-prepare-0-abcde",
        "bot-1-0-abcde",
        "bot-2-0-abcde",
        "bot-publish-0-abcde",
    ]
