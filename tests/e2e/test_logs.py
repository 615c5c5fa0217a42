"""`finetune logs` on real pods: followed over an outage of the API server into the next attempt."""

import subprocess
import sys
import time

import pytest

from harness.access import until
from harness.scratch_images import BUSYBOX_IMAGE
from harness.stage_config import SPEC, merged

NAMESPACE = "logs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
JOBS = f"/apis/finetune.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def job(cluster):
    """A job that the operator does not accept, so that nothing but this test makes its pods."""
    cluster.api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
    until(lambda: cluster.api.get(account), "the namespace had its service account")
    body = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "bot"},
        "spec": merged(SPEC, {"profileRef": {"name": "absent"}}),
    }
    made = cluster.api.create(JOBS, body)
    until(lambda: cluster.api.get(f"{JOBS}/bot").get("status"), "the operator had looked at it")
    yield made
    cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=120s")


def speaks(cluster, uid, attempt, rank, lines):
    """Start a pod of an attempt that says four lines a second once it is told to."""
    name = f"bot-{attempt}-{rank}"
    labels = {
        "finetune.dev/job": "bot",
        "finetune.dev/job-uid": uid,
        "finetune.dev/stage": "train",
        "finetune.dev/attempt": str(attempt),
        "batch.kubernetes.io/job-completion-index": str(rank),
    }
    loop = f"until [ -e /tmp/speak ]; do sleep 0.1; done; i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; sleep 0.25; done"
    container = {"name": "trainer", "image": BUSYBOX_IMAGE, "command": ["sh", "-c", loop]}
    spec = {"restartPolicy": "Never", "containers": [container]}
    cluster.api.create(PODS, {"metadata": {"name": name, "labels": labels}, "spec": spec})
    return name


def tell(cluster, *names):
    """Let pods speak, once all of them run."""
    for name in names:
        wait_phase(cluster, name, "Running")
    for name in names:
        cluster.kubectl("exec", "-n", NAMESPACE, name, "--", "touch", "/tmp/speak")


def wait_phase(cluster, name, phase):
    path = f"{PODS}/{name}"
    until(lambda: cluster.api.get(path)["status"]["phase"] == phase, f"{name} {phase}", 90)


def logs(cluster, *words):
    return [
        sys.executable,
        *("-m", "finetune_cli.main", "logs", "bot", "-n", NAMESPACE),
        *("--kubeconfig", str(cluster.kubeconfig), *words),
    ]


def printed(cluster, folder, *words):
    command = logs(cluster, *words)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_every_line_once_whatever_breaks_in_between(cluster, job, tmp_path):
    uid = job["metadata"]["uid"]
    first = [speaks(cluster, uid, 1, rank, 60) for rank in (0, 1)]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        following = subprocess.Popen(logs(cluster, "-f"), stdout=out, stderr=err, cwd=tmp_path)
    try:
        tell(cluster, *first)
        told = tmp_path / "out"
        until(lambda: all(f"[{name}] line 4\n" in told.read_text() for name in first), "both spoke")
        cluster.stop_api_server()
        time.sleep(3)
        cluster.start_api_server()
        for name in first:
            wait_phase(cluster, name, "Succeeded")
        last = speaks(cluster, uid, 2, 0, 10)
        tell(cluster, last)
        wait_phase(cluster, last, "Succeeded")
        cluster.api.delete(f"{JOBS}/bot")
        assert following.wait(60) == 0, (tmp_path / "err").read_text()
    finally:
        following.kill()
        following.wait(10)

    lines = (tmp_path / "out").read_text().splitlines()
    for name, count in ((first[0], 60), (first[1], 60), (last, 10)):
        own = [line for line in lines if line.startswith(f"[{name}] ")]
        assert own == [f"[{name}] line {number}" for number in range(1, count + 1)]
    assert len(lines) == 130
    said = (tmp_path / "err").read_text()
    assert said.count("does not answer") == 1
    assert said.count("answers again") == 1


def test_attempt_rank_and_the_run_before(cluster, job, tmp_path):
    uid = job["metadata"]["uid"]
    pods = [
        speaks(cluster, uid, attempt, rank, lines)
        for attempt, rank, lines in ((1, 0, 2), (1, 1, 3), (2, 0, 4))
    ]
    tell(cluster, *pods)
    for name in pods:
        wait_phase(cluster, name, "Succeeded")
    assert printed(cluster, tmp_path).stdout.split("\n") == [
        "line 1",
        "line 2",
        "line 3",
        "line 4",
        "",
    ]
    assert printed(cluster, tmp_path, "--previous").stdout.splitlines() == [
        "[bot-1-0] line 1",
        "[bot-1-0] line 2",
        "[bot-1-1] line 1",
        "[bot-1-1] line 2",
        "[bot-1-1] line 3",
    ]
    one = printed(cluster, tmp_path, "--attempt", "1", "--rank", "1", "-f")
    assert one.returncode == 0
    assert one.stdout.splitlines() == [f"[bot-1-1] line {number}" for number in (1, 2, 3)]
    none = printed(cluster, tmp_path, "--attempt", "9")
    assert none.returncode == 1
    # The operator, which did not accept the job, knows of no pod.
    assert none.stderr.startswith("error  job bot has had no pods yet: it is Pending [no-pods]")
