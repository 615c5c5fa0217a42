"""A job of two pods makes room for a more important pod in mid-training, and comes back."""

import json
from contextlib import ExitStack

import pytest

from harness.disturbed import ONCE, Disturbed, all_held, all_told
from harness.scratch_images import BUSYBOX_IMAGE
from harness.stage_config import merged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2000)]

OTHERS = "other-team"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.fixture
def urgent(cluster, tenant):
    """A class of pods that everybody else makes room for, and a namespace of another team."""
    path = "/apis/scheduling.k8s.io/v1/priorityclasses"
    body = {"metadata": {"name": "urgent"}, "value": 1_000_000, "description": "first of all"}
    cluster.api.create(path, body)
    cluster.secure_namespace(OTHERS)
    yield "urgent"
    tenant.remove("preempted")  # had it not ended, it would take all GPUs again
    cluster.api.delete(f"/api/v1/namespaces/{OTHERS}")
    cluster.api.delete(f"{path}/urgent")


def pod_that_wants(gpus, priority):
    resources = {"nvidia.com/gpu": str(gpus)}
    container = {
        "name": "serve",
        "image": BUSYBOX_IMAGE,
        "command": ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.2; done"],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": RESTRICTED,
    }
    spec = {
        "priorityClassName": priority,
        "containers": [container],
        "terminationGracePeriodSeconds": 1,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "urgent"}, "spec": spec}


def preempted_by_the_scheduler(log):
    """The names of the pods in whose status it has written so."""
    found = set()
    with log.open() as lines:
        for line in lines:
            if "PreemptionByScheduler" not in line or not line.endswith("\n"):
                continue
            event = json.loads(line)
            about, asked = event["objectRef"], event.get("requestObject") or {}
            reasons = {
                one["type"]: one.get("reason")
                for one in asked.get("status", {}).get("conditions") or []
                if "type" in one
            }
            if event["user"]["username"] != "system:kube-scheduler" or about["resource"] != "pods":
                continue
            if reasons.get("DisruptionTarget") == "PreemptionByScheduler":
                found.add(about["name"])
    return found


def row_of(tenant, name):
    """The row of `kubectl get ftjob`, by column."""
    table = tenant.api.table(f"{tenant.jobs}/{name}")
    columns = [column["name"] for column in table["columnDefinitions"]]
    return dict(zip(columns, table["rows"][0]["cells"], strict=True))


def test_a_preempted_job_waits_for_room_and_ends_bit_equal(
    cluster, tenant, urgent, twin, short_twin
):
    twin()  # there is no room beside it
    undisturbed = short_twin()
    tenant.start("preempted", merged(ONCE, {"resources": {"accelerator": {"perNode": 4}}}))
    job = Disturbed(tenant, "preempted")
    pods = f"/api/v1/namespaces/{OTHERS}/pods"
    with ExitStack() as held:
        before = all_held([job], held)[job.name]
        assert row_of(tenant, "preempted")["GPUs"] == 8
        cluster.api.create(pods, pod_that_wants(8, urgent))
        all_told(tenant, *before.pods)
    tenant.wait(lambda: tenant.status("preempted")["attempt"] == 2, "the attempt has ended", 180)
    tenant.wait(
        lambda: cluster.api.get(f"{pods}/urgent")["status"].get("phase") == "Running",
        "the more important pod runs",
    )

    assert set(before.names) & preempted_by_the_scheduler(cluster.audit_log)

    def waits():
        found = tenant.conditions("preempted").get("Recovering")
        return found if found and found[1] == "WaitingForRoom" else None

    status, _, message = tenant.wait(waits, "it waits for room", 180)
    assert status == "True"
    assert "Insufficient nvidia.com/gpu" in message
    row = row_of(tenant, "preempted")
    assert (row["Phase"], row["Reason"], row["Restarts"]) == ("Recovering", "WaitingForRoom", 1)
    assert job.kept.claim(2) == {}

    cluster.api.delete(f"{pods}/urgent")
    status = job.goes_on(before, {"Preempted"}, together=True)
    assert "PreemptionByScheduler" in status["lastFailure"]["message"]

    status = tenant.finished("preempted", 600)
    assert status["outcome"] == "Succeeded"
    assert (status["attempt"], status["preemptions"], status["failures"]) == (2, 1, 0)
    (resume,) = status["resumes"]
    saved = job.kept.claim(2)["resumesFrom"]
    assert (resume["fromStep"], resume["stoppedAt"], resume.get("lostSteps", 0)) == (
        saved["step"],
        saved["step"],
        0,
    )
    assert resume["digest"] == saved["digest"]
    assert job.kept.losses() == undisturbed.losses()
    assert list(undisturbed.adapter()) == ["adapter/adapter_model.safetensors"]
    assert job.kept.adapter() == undisturbed.adapter()
    print(json.dumps(job.kept.adapter()))
