"""The node is a real one: what pods get of it, and what they do not."""

import json
import subprocess

import pytest

from harness.access import until
from harness.control_plane import ApiError
from harness.scratch_images import BUSYBOX_IMAGE

TEAM = "looks"
PODS = f"/api/v1/namespaces/{TEAM}/pods"
CLAIMS = f"/api/v1/namespaces/{TEAM}/persistentvolumeclaims"
JOBS = f"/apis/kubeflow.org/v1/namespaces/{TEAM}/pytorchjobs"
USER = 1234


def container(script, **more):
    return {
        "name": "pytorch",
        "image": BUSYBOX_IMAGE,
        "command": ["sh", "-c", script],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        **more,
    }


def pod_spec(script, claim=None, **more):
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **more,
    }
    if claim is None:
        return {**spec, "containers": [container(script)]}
    return {
        **spec,
        "containers": [container(script, volumeMounts=[{"name": "data", "mountPath": "/data"}])],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
    }


def phase(api, name):
    return api.get(f"{PODS}/{name}")["status"].get("phase")


def run_pod(c, name, spec, result="Succeeded"):
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    c.api.create(PODS, body)
    until(lambda: phase(c.api, name) in ("Succeeded", "Failed"), f"pod {name} ended")
    said = c.pod_logs(TEAM, name)
    assert phase(c.api, name) == result, said
    return said


def pytorch_job(name, spec, workers=2):
    template = {"replicas": workers, "restartPolicy": "Never", "template": {"spec": spec}}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name},
        "spec": {
            "runPolicy": {"cleanPodPolicy": "Running"},
            "pytorchReplicaSpecs": {"Worker": template},
        },
    }


@pytest.fixture(scope="module")
def c(cluster):
    cluster.secure_namespace(TEAM)
    yield cluster
    cluster.api.delete(f"/api/v1/namespaces/{TEAM}")


def test_pods_reach_the_api_and_each_other_and_nothing_outside(c):
    script = (
        "nslookup kubernetes.default.svc.cluster.local | grep -c 'Address: 10.96.0.1$';"
        " nc -w 5 10.96.0.1 443 </dev/null && echo reaches the API;"
        " nc -w 5 198.51.100.1 80 </dev/null 2>/dev/null || echo nothing outside"
    )
    assert run_pod(c, "looks", pod_spec(script)) == "1\nreaches the API\nnothing outside\n"


def test_what_restricted_pod_security_forbids_is_refused(c):
    spec = pod_spec("true")
    spec["securityContext"] = {}
    with pytest.raises(ApiError, match="violates PodSecurity") as refused:
        c.api.create(PODS, {"metadata": {"name": "root"}, "spec": spec})
    assert refused.value.code == 403


def test_the_webhook_of_training_operator_refuses(c):
    spec = pod_spec("true")
    spec["containers"][0]["name"] = "another"
    with pytest.raises(ApiError, match=r"denied the request.*pytorch") as refused:
        c.api.create(JOBS, pytorch_job("refused", spec))
    assert refused.value.code == 403


def test_a_job_of_two_pods_with_gpus_shares_a_volume(c):
    wanted = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    c.api.create(CLAIMS, {"metadata": {"name": "work"}, "spec": wanted})
    spec = pod_spec(
        "echo $HOSTNAME > /data/$HOSTNAME; until [ $(ls /data | wc -l) = 2 ]; do sleep 0.1; done",
        "work",
        nodeSelector={"accel": "h100"},
    )
    spec["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "4"}}
    c.api.create(JOBS, pytorch_job("pair", spec))

    def ended():
        found = c.api.get(f"{JOBS}/pair").get("status", {}).get("conditions") or []
        return {one["type"] for one in found if one["status"] == "True"} & {"Succeeded", "Failed"}

    assert until(ended, "the job ended") == {"Succeeded"}
    volume = c.api.get(f"{CLAIMS}/work")["spec"]["volumeName"]
    assert c.api.get(f"/api/v1/persistentvolumes/{volume}")["spec"]["storageClassName"] == (
        "finetune-local"
    )
    folder = c.api.get(f"/api/v1/persistentvolumes/{volume}")["spec"]["local"]["path"]
    owners = subprocess.run(
        ["stat", "--format", "%n %u:%g", "pair-worker-0", "pair-worker-1"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert owners == f"pair-worker-0 {USER}:{USER}\npair-worker-1 {USER}:{USER}\n"

    grown = {"spec": {"resources": {"requests": {"storage": "2Gi"}}}}
    c.api.request("PATCH", f"{CLAIMS}/work", grown, "application/merge-patch+json")
    size = "the volume grew"
    until(lambda: c.api.get(f"{CLAIMS}/work")["status"]["capacity"]["storage"] == "2Gi", size)

    c.api.delete(f"{JOBS}/pair")
    c.api.delete(f"{CLAIMS}/work")
    volumes = "/api/v1/persistentvolumes"
    until(
        lambda: volume not in {one["metadata"]["name"] for one in c.api.get(volumes)["items"]},
        "the volume was removed",
    )
    assert not c.folder.joinpath("volumes", folder).exists()


def test_more_gpus_than_the_node_has_wait(c):
    spec = pod_spec("true")
    spec["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "9"}}
    c.api.create(PODS, {"metadata": {"name": "greedy"}, "spec": spec})

    def unschedulable():
        found = c.api.get(f"{PODS}/greedy")["status"].get("conditions") or []
        return [one["message"] for one in found if one.get("reason") == "Unschedulable"]

    (message,) = until(unschedulable, "the scheduler said why")
    assert "1 Insufficient nvidia.com/gpu" in message
    c.api.delete(f"{PODS}/greedy")


def test_a_volume_that_was_filled_before_is_writable_for_its_group(c, tmp_path):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/in").write_text("given\n")
    c.make_volume(TEAM, "prepared", tmp_path / "prepared")
    assert run_pod(c, "copies", pod_spec("cat /data/in; cp /data/in /data/out", "prepared")) == (
        "given\n"
    )
    assert (tmp_path / "prepared/out").read_text() == "given\n"
    c.api.delete(f"{PODS}/copies")
    c.api.delete(f"{CLAIMS}/prepared")
    c.api.delete(f"/api/v1/persistentvolumes/{TEAM}-prepared")


def test_the_audit_log_holds_every_pod_as_it_was_asked_for(c):
    run_pod(c, "audited", pod_spec("true", nodeSelector={"accel": "h100"}))
    lines = map(json.loads, c.audit_log.read_text().splitlines())
    created = [
        line["requestObject"]["spec"]["nodeSelector"]
        for line in lines
        if line["verb"] == "create"
        and line["objectRef"].get("resource") == "pods"
        and line["objectRef"].get("name") == "audited"
        and "subresource" not in line["objectRef"]
    ]
    assert created == [{"accel": "h100"}]
