"""The definition of PyTorchJob comes and goes while the operator runs; the API server is real."""

import threading
import urllib.request

import pytest

from harness.control_plane import ApiError
from harness.jobs import job_object
from harness.operator_driver import (
    JOBS,
    make_namespace,
    operator,
    status_of,
    wait_for,
)
from harness.played_runs import Run
from harness.pod_player import PodPlayer, now
from harness.processes import free_port, wait_until

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
DEFINITION = f"{DEFINITIONS}/pytorchjobs.kubeflow.org"
PYTORCH_JOBS = "/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs"
PYTORCH_JOB = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "pytorchjobs.kubeflow.org",
        # The group is not the project's, but the server wants to be told so.
        "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
    },
    "spec": {
        "group": "kubeflow.org",
        "scope": "Namespaced",
        "names": {"kind": "PyTorchJob", "plural": "pytorchjobs", "singular": "pytorchjob"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}


def install(api):
    api.create(DEFINITIONS, PYTORCH_JOB)

    def served():
        try:
            api.get(PYTORCH_JOBS.format(namespace="default"))
        except ApiError:
            return False
        return True

    wait_until(served, "PyTorchJob is served", [])


def remove(api):
    try:
        api.delete(DEFINITION)
    except ApiError as error:
        if error.code != 404:
            raise
        return

    def gone():
        try:
            api.get(DEFINITION)
        except ApiError as error:
            return error.code == 404
        return False

    wait_until(gone, "the definition is gone", [])


@pytest.fixture
def definition(api):
    """Nothing is installed; what a test installs is removed."""
    remove(api)
    yield
    remove(api)


def test_a_backend_that_is_installed_and_removed_while_the_operator_runs(
    plane, api, definitions, definition, tmp_path
):
    del definitions, definition
    namespace = make_namespace(api, "backend-discovery")
    ends = threading.Event()

    def script(stage, attempt, node):
        del attempt, node
        return Run(forever=stage == "train" and not ends.is_set())

    def condition(name, kind):
        found = status_of(api, namespace, name).get("conditions") or []
        return {one["type"]: (one["status"], one["reason"], one["message"]) for one in found}.get(
            kind
        )

    def child(name):
        return (status_of(api, namespace, name).get("child") or {}).get("kind")

    def pytorch_job(name):
        try:
            return api.get(f"{PYTORCH_JOBS.format(namespace=namespace)}/{name}")
        except ApiError:
            return None

    def watched():
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return 'finetune_watch_events_total{kind="PyTorchJob"}' in answer.read().decode()

    port = free_port()
    flags = ["--unreachable-seconds", "4", "--relist-seconds", "600", "--probe-port", str(port)]
    player = PodPlayer(api, namespace, script)
    player.start()
    jobs = JOBS.format(namespace=namespace)
    try:
        with operator(plane.kubeconfig, namespace, tmp_path / "operator.log", *flags) as process:
            api.create(jobs, job_object("any"))
            api.create(jobs, job_object("wants", backend="PyTorchJob"))
            # Nothing of the kind: who asks for it waits, who does not gets a Job.
            wait_for(
                lambda: (
                    child("any") == "Job" and (condition("any", "Running") or [""])[0] == "True"
                ),
                process,
            )
            wait_for(lambda: condition("wants", "Prepared"), process)
            waits = condition("wants", "Prepared")
            assert player.made == ["any-prepare-0-abcde", "any-1-0-abcde"]

            # Installed: it goes on by itself, and is watched.
            install(api)
            made = wait_for(lambda: pytorch_job("wants-1"), process)
            status = {"conditions": [{"type": "Succeeded", "status": "True"}]}
            status |= {"startTime": now(), "completionTime": now()}
            wait_for(watched, process)
            path = f"{PYTORCH_JOBS.format(namespace=namespace)}/wants-1"
            patch = {"metadata": {"uid": made["metadata"]["uid"]}, "status": status}
            api.request("PATCH", f"{path}/status", patch, "application/merge-patch+json")
            # Its next look by itself would be in a minute.
            wait_for(lambda: status_of(api, namespace, "wants").get("outcome"), process, 30)

            # A job that names none gets it now; the one before keeps what it has.
            api.create(jobs, job_object("later"))
            made = wait_for(lambda: pytorch_job("later-1"), process)
            uid = made["metadata"]["uid"]
            wait_for(lambda: status_of(api, namespace, "later")["child"]["uid"] == uid, process)
            assert status_of(api, namespace, "any")["backend"] == "Job"

            # Removed: its objects go with it, and nothing else does.
            remove(api)
            wait_for(
                lambda: (condition("later", "Recovering") or ["", ""])[1] == "BackendMissing",
                process,
            )
            ends.set()
            wait_for(lambda: status_of(api, namespace, "any").get("outcome"), process)

            install(api)
            wait_for(lambda: pytorch_job("later-2"), process)
            assert not process.ended(), process.tail()
    finally:
        player.stop()
    assert not player.errors
    assert waits == (
        "False",
        "BackendMissing",
        "this cluster has no PyTorchJob; install it, or leave spec.backend out",
    )
    wants, other = (status_of(api, namespace, name) for name in ("wants", "any"))
    assert (wants["outcome"], wants["backend"], wants["attempt"]) == ("Succeeded", "PyTorchJob", 1)
    assert (other["outcome"], other["backend"], other["attempt"]) == ("Succeeded", "Job", 1)
    assert process.popen.returncode == 0
