"""Children, workspaces and claims that are somebody else's, missing, or of an earlier job."""

from harness.looks import CHILDREN, CLAIMS, MAPS, NAMESPACE, Looks
from harness.operator_driver import JOBS


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
