"""A workspace that grows: what the API server allows, and what it refuses, is its own word."""

import threading

import pytest

from harness.jobs import job_object
from harness.operator_driver import JOBS, make_namespace, operator, status_of, wait_for
from harness.played_runs import Run
from harness.pod_player import PodPlayer

CLASSES = "/apis/storage.k8s.io/v1/storageclasses"


@pytest.fixture
def classes(api):
    """One class whose volumes can grow, and one whose cannot."""
    for name, grows in (("grows", True), ("fixed", False)):
        body = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass"}
        body |= {"metadata": {"name": name}, "provisioner": "storage.example/none"}
        api.create(CLASSES, {**body, "allowVolumeExpansion": grows})
    yield
    for name in ("grows", "fixed"):
        api.delete(f"{CLASSES}/{name}")


def test_the_claim_grows_where_its_class_allows_it_and_nothing_stops_where_not(
    plane, api, definitions, classes, tmp_path
):
    del definitions, classes
    namespace = make_namespace(api, "workspace-growth")
    jobs = JOBS.format(namespace=namespace)
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    ends = threading.Event()

    def script(stage, attempt, node):
        del attempt, node
        return Run(forever=stage == "train" and not ends.is_set())

    def patch(path, body):
        api.request("PATCH", path, body, "application/merge-patch+json")

    def size(name):
        return api.get(f"{claims}/{name}-workspace")["spec"]["resources"]["requests"]["storage"]

    def accepted(name):
        found = status_of(api, namespace, name)["conditions"]
        return next(one for one in found if one["type"] == "Accepted")

    player = PodPlayer(api, namespace, script)
    player.start()
    try:
        with operator(plane.kubeconfig, namespace, tmp_path / "operator.log") as process:
            for name in ("grows", "fixed"):
                space = {"size": "10Gi", "storageClassName": name}
                api.create(jobs, job_object(name, workspace=space))
                wait_for(lambda: status_of(api, namespace, name).get("phase") == "Running", process)  # noqa: B023 - asked now
                # What the controllers of volumes would do.
                path = f"{claims}/{name}-workspace"
                patch(path, {"spec": {"volumeName": f"volume-of-{name}"}})
                bound = {"phase": "Bound", "capacity": {"storage": "10Gi"}}
                patch(f"{path}/status", {"status": bound})

            patch(f"{jobs}/grows", {"spec": {"workspace": {"size": "20Gi"}}})
            wait_for(lambda: size("grows") == "20Gi", process)
            patch(f"{jobs}/fixed", {"spec": {"workspace": {"size": "20Gi"}}})
            wait_for(lambda: "[workspace-not-grown]" in accepted("fixed").get("message", ""))
            refusal = accepted("fixed")
            assert size("fixed") == "10Gi"

            ends.set()
            for name in ("grows", "fixed"):
                wait_for(lambda: status_of(api, namespace, name).get("outcome"), process)  # noqa: B023 - asked now
    finally:
        player.stop()
    assert not player.errors
    assert (refusal["status"], refusal["reason"]) == ("True", "Accepted")
    assert refusal["message"] == (
        "spec.workspace.size: claim fixed-workspace could not grow to 20Gi, the job goes on with"
        ' what it has: persistentvolumeclaims "fixed-workspace" is forbidden: only dynamically'
        " provisioned pvc can be resized and the storageclass that provisions the pvc must support"
        " resize [workspace-not-grown] fix: use a storage class with allowVolumeExpansion, or name"
        " a larger claim in workspace.claimName of a new job"
    )
    assert [status_of(api, namespace, name)["outcome"] for name in ("grows", "fixed")] == [
        "Succeeded",
        "Succeeded",
    ]
    events = api.get(f"/api/v1/namespaces/{namespace}/events")["items"]
    told = {e["involvedObject"]["name"]: e["type"] for e in events if "NotGrown" in e["reason"]}
    assert told == {"fixed": "Warning"}
