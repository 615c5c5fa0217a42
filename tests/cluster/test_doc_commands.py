"""The pages for users of a cluster, command by command, on a real API server with the real kubectl.

What needs a kubelet or a controller is left out here and run in the end-to-end tests. The operator is
played: before the pages wait for something, the test writes the status that says so.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.binaries import HELM, KUBECTL, binary
from harness.control_plane import ApiError, control_plane
from harness.doc_commands import commands_in, prints
from harness.operator_driver import JOBS, wait_for

ROOT = Path(__file__).parents[2]
NEEDS_MORE = re.compile(
    r"kubectl (cp|exec) |pod/loader|pvc/|kubectl (get|delete) pvc|finetune logs|delete pod |rollout "
)
"""A kubelet that copies, runs and prints; controllers that let go of claims."""
THEN = "2026-01-01T10:00:00Z"


def condition(type_, reason):
    return {
        "type": type_,
        "status": "True",
        "reason": reason,
        "message": "",
        "lastTransitionTime": THEN,
    }


def standing(name):
    """A status in which a condition holds."""
    status = {"attempt": 2, "conditions": [condition(name, name)], "preemptions": 1, "failures": 0}
    status["resumes"] = []
    status["output"] = {"uri": "pvc://output/quickstart"}
    if name in ("Succeeded", "Failed"):
        status |= {"phase": name, "outcome": name, "finishedAt": THEN}
    if name == "Failed":
        status["lastFailure"] = {"class": "InvalidData", "code": "file-not-found", "message": "m"}
        status["lastFailure"] |= {"time": THEN, "fix": "write it"}
    return status


def write(api, namespace, name):
    path = f"{JOBS.format(namespace=namespace)}/quickstart"
    body = api.get(path)
    api.request("PUT", f"{path}/status", {**body, "status": standing(name)})


@pytest.fixture
def team(plane, api, definitions, request, tmp_path):
    """A namespace that enforces restricted Pod Security, and the environment of its user."""
    del definitions
    name = "docs-" + re.sub(r"[^a-z]+", "-", request.node.callspec.id).strip("-")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    api.create(f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})
    return name, environment(plane, name, tmp_path)


def environment(plane, namespace, folder):
    """Return what a reader of the pages has around them."""
    config = json.loads(plane.kubeconfig.read_text())
    config["contexts"][0]["context"]["namespace"] = namespace
    (folder / "config").write_text(json.dumps(config))
    tools, home = folder / "bin", folder / "home"
    tools.mkdir()
    home.mkdir()
    for name in (KUBECTL, HELM):
        (tools / name).symlink_to(binary(name))
    (tools / "finetune").symlink_to(Path(sys.executable).parent / "finetune")
    return {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(home),
        "KUBECONFIG": str(folder / "config"),
        "REGISTRY": "registry.example",
        "VERSION": "0.1.0",
    }


def follow(api, namespace, around, page):
    """Type the commands of a page that need an API server alone; returns how many were left out."""
    commands = commands_in(ROOT / page, ROOT)
    kept = [command for command in commands if not NEEDS_MORE.search(command.text)]
    for command in kept:
        waits = re.search(r"--for=condition=(\w+) finetunejob/", command.text)
        if waits:
            write(api, namespace, waits[1])
        elif re.fullmatch(r"finetune watch \w+", command.text):
            write(api, namespace, "Succeeded")
        done = subprocess.run(
            ["bash", "-c", command.text],
            cwd=ROOT,
            env=around,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert prints(command.shown, done.stdout), f"{command}\n{done.stdout}"
    return len(commands) - len(kept)


def test_readme(tmp_path):
    """From an empty cluster to a job that succeeded, and back."""
    with control_plane() as plane:
        wait_for(lambda: plane.api.get("/api/v1/namespaces/default"))
        around = environment(plane, "default", tmp_path)
        assert follow(plane.api, "default", around, "README.md") == 2
        (job,) = plane.api.get(JOBS.format(namespace="default"))["items"]
        assert job["spec"]["suspend"] is False
        deployments = "/apis/apps/v1/namespaces/finetune-system/deployments"
        assert plane.api.get(deployments)["items"] == []


@pytest.mark.parametrize(
    ("page", "left_out"),
    [
        ("fill-volumes", 6),
        ("run-on-a-cluster", 6),
        ("preemption", 2),
        ("fix-a-failed-job", 1),
    ],
)
def test_page(api, team, page, left_out):
    namespace, around = team
    assert follow(api, namespace, around, f"docs/use/{page}.md") == left_out
    if page == "fill-volumes":
        claims = api.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims")["items"]
        assert [c["metadata"]["name"] for c in claims] == ["datasets", "models", "output"]
        (loader,) = api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
        (container,) = loader["spec"]["containers"]
        assert container["image"] == "registry.example/finetune-trainer:0.1.0"
        assert container["command"] == ["sleep", "3600"]
        assert [m["mountPath"] for m in container["volumeMounts"]] == [
            "/volumes/models",
            "/volumes/datasets",
            "/volumes/output",
        ]
    elif page != "preemption":  # there the job goes together with a claim
        with pytest.raises(ApiError):
            api.get(f"{JOBS.format(namespace=namespace)}/quickstart")
