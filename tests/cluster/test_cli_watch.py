"""``finetune watch`` against a real API server; statuses are written by the test."""

import os
import sys
import time
from pathlib import Path

from harness.api_proxy import ApiProxy
from harness.binaries import KUBECTL, binary
from harness.caller import Caller
from harness.cli_process import cli, ended
from harness.operator_driver import JOBS, wait_for
from harness.written_status import FAILED, PREPARING, QUEUED, RESUMED, SUCCEEDED, running, write

BIN = Path(sys.executable).parent


def viewer_of(api, namespace):
    """Make a user with the rights of the role view, as the chart aggregates it; returns its token."""
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    rule = {
        "apiGroups": ["finetune.dev"],
        "resources": ["finetunejobs"],
        "verbs": ["get", "list", "watch"],
    }
    api.create(f"{rbac}/roles", {"metadata": {"name": "viewer"}, "rules": [rule]})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "viewer"}
    subject = {"kind": "ServiceAccount", "name": "viewer", "namespace": namespace}
    binding = {"metadata": {"name": "viewer"}, "roleRef": reference, "subjects": [subject]}
    api.create(f"{rbac}/rolebindings", binding)
    return Caller.made(api, namespace, "viewer").token


class Noting(ApiProxy):
    """Knows what it was asked for."""

    def __init__(self, *arguments):
        self.asked = []
        super().__init__(*arguments)

    async def _pass(self, request):
        watch = "watch" in request.query
        self.asked.append("watch" if watch else request.path.rpartition("/")[2])
        return await super()._pass(request)


def test_watch_from_the_first_word_to_success(plane, api, namespace, job, tmp_path):
    with cli(plane.kubeconfig, tmp_path, "watch", "bot", "-n", namespace) as watching:
        for status, said in (
            (PREPARING, "preparing"),
            (QUEUED, "queued"),
            (running(1, 10), "step 10/60"),
            (RESUMED, "attempt 2 from"),
            (SUCCEEDED, "Succeeded"),
        ):
            write(api, namespace, status)
            watching.said(said)
        code, lines = watching.end()

    assert code == 0
    began = api.get(f"{JOBS.format(namespace=namespace)}/bot")["metadata"]["creationTimestamp"]
    assert began
    assert lines[:9] == [
        f"bot  namespace {namespace} of context tests",
        "preparing  try 1: reading model and data",
        "queued     0/1 nodes are available: 1 Insufficient cpu",
        "prepared   60 rows, 9,000 trained tokens (31%)",
        "training   attempt 1 from step 0",
        "  step 10/60  loss 0.844  1,204 tokens/s  ETA 1m20s",
        "checkpoint step 30, sha256:9f9f9f9f9f9f",
        "ended      attempt 1 at step 33, Preempted; checkpoint 30 is saved",
        "training   attempt 2 from verified step 30",
    ]
    assert lines[-4].startswith("bot  Succeeded")
    assert lines[-4].endswith("lora on tiny, 60 steps")
    assert lines[-3:] == [
        "  attempt 2: Preempted at step 33, resumed from 30 (sha256 9f9f9f9f...), 3 steps repeated",
        "  eval loss 1.030",
        "  model  pvc://output/bot  sha256:4b4b4b4b4b4b",
    ]


def test_watch_ends_with_one_and_the_fix_when_a_job_fails(plane, api, namespace, job, tmp_path):
    write(api, namespace, FAILED)
    assert ended(plane.kubeconfig, tmp_path, "watch", "bot", "-n", namespace) == (
        1,
        [
            f"bot  namespace {namespace} of context tests",
            "bot  Failed/InvalidData: train.jsonl:17: no assistant turn, nothing to learn from"
            " [no-assistant-turn]",
            "  fix: add the answer",
            f"  log: finetune logs bot -n {namespace}",
        ],
    )


def test_watch_once_leaves_a_job_that_goes_on(plane, api, namespace, job, tmp_path):
    write(api, namespace, running(1, 10))
    code, lines = ended(plane.kubeconfig, tmp_path, "watch", "bot", "-n", namespace, "--once")
    assert (code, lines[-1]) == (0, "  step 10/60  loss 0.844  1,204 tokens/s  ETA 1m20s")


def test_watch_outlives_an_outage_of_the_api_server(api, namespace, job, tmp_path):
    proxy = Noting(api, tmp_path, viewer_of(api, namespace))
    try:
        write(api, namespace, running(1, 10))
        with cli(proxy.kubeconfig, tmp_path, "watch", "bot", "-n", namespace) as watching:
            watching.said("step 10/60")
            # Its first list was answered: one that fails is no outage.
            wait_for(lambda: "watch" in proxy.asked)
            proxy.away = True
            watching.said("the API server does not answer")
            write(api, namespace, SUCCEEDED)
            time.sleep(1.0)
            proxy.away = False
            code, lines = watching.end()
    finally:
        proxy.stop()
    assert code == 0
    assert sum("does not answer" in line for line in lines) == 1
    assert lines.count("the API server answers again") == 1
    assert lines[-1] == "  model  pvc://output/bot  sha256:4b4b4b4b4b4b"


def test_watch_asks_once_and_then_only_listens(api, namespace, job, tmp_path):
    """No polling: one read, one list, one watch, however long nothing happens."""
    proxy = Noting(api, tmp_path, viewer_of(api, namespace))
    try:
        write(api, namespace, running(1, 10))
        with cli(proxy.kubeconfig, tmp_path, "watch", "bot", "-n", namespace) as watching:
            watching.said("step 10/60")
            time.sleep(5.0)
            write(api, namespace, SUCCEEDED)
            assert watching.end()[0] == 0
    finally:
        proxy.stop()
    assert proxy.asked == ["bot", "finetunejobs", "watch"]


def test_a_job_that_is_deleted_ends_the_watch_with_one(plane, api, namespace, job, tmp_path):
    write(api, namespace, running(1, 10))
    with cli(plane.kubeconfig, tmp_path, "watch", "bot", "-n", namespace) as watching:
        watching.said("step 10/60")
        api.delete(f"{JOBS.format(namespace=namespace)}/bot")
        code, lines = watching.end()
    assert (code, lines[-1]) == (1, "bot was deleted")


def test_what_a_newer_operator_says_is_left_out(plane, api, namespace, job, tmp_path):
    """The API server prunes what the definition does not know; the phase word is a plain string."""
    write(api, namespace, {**running(1, 10), "trainerStatus": "SomethingNew"})
    code, lines = ended(plane.kubeconfig, tmp_path, "watch", "bot", "-n", namespace, "--once")
    assert (code, lines[1]) == (0, "prepared   60 rows, 9,000 trained tokens (31%)")


def test_kubectl_finds_the_plugin(plane, api, namespace, job, tmp_path):
    write(api, namespace, SUCCEEDED)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kubectl-finetune").symlink_to(BIN / "kubectl-finetune")
    program = ("env", f"PATH={tmp_path / 'bin'}:{os.environ['PATH']}", str(binary(KUBECTL)))
    words = ("finetune", "watch", "bot", "-n", namespace)
    with cli(plane.kubeconfig, tmp_path, *words, program=program) as started:
        code, lines = started.end()
    assert (code, lines[-1]) == (0, "  model  pvc://output/bot  sha256:4b4b4b4b4b4b")
