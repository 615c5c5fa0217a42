"""The command line against a real API server; statuses are written by the test.

Logs of real pods need a kubelet: they are read in the end-to-end tests. Here stand what is found,
what is said where nothing can be read, and, in the unit tests, what is done with the lines.
"""

import io
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from finetune_cli.cluster import jobs
from finetune_cli.main import main
from harness.api_proxy import ApiProxy
from harness.binaries import KUBECTL, binary
from harness.operator_driver import JOBS, make_namespace, wait_for
from harness.stage_config import SPEC

BIN = Path(sys.executable).parent
THEN = "2026-01-01T10:00:00Z"


@pytest.fixture
def namespace(api, definitions, request):
    del definitions
    return make_namespace(api, request.node.name.replace("_", "-")[-40:].strip("-"))


@pytest.fixture
def job(api, namespace):
    body = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "bot"},
        "spec": SPEC,
    }
    return api.create(JOBS.format(namespace=namespace), body)


def condition(type_, status, reason, message=""):
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": 1,
        "lastTransitionTime": THEN,
    }


ACCEPTED = condition("Accepted", "True", "Accepted")
PREPARED = condition("Prepared", "True", "DataReady", "60 rows, 9,000 trained tokens (31%)")
PREPARING = {
    "phase": "Preparing",
    "tries": 1,
    "conditions": [ACCEPTED, condition("Prepared", "False", "Preparing", "reading model and data")],
}
QUEUED = {
    "phase": "Queued",
    "attempt": 1,
    "prepared": True,
    "conditions": [
        ACCEPTED,
        PREPARED,
        condition(
            "Queued", "True", "WaitingForRoom", "0/1 nodes are available: 1 Insufficient cpu"
        ),
    ],
}


def running(attempt, step, **more):
    return {
        "phase": "Running",
        "attempt": attempt,
        "prepared": True,
        "conditions": [
            ACCEPTED,
            PREPARED,
            condition("Queued", "False", "Admitted"),
            condition("Running", "True", "Training", f"attempt {attempt} is running"),
        ],
        "progress": {
            "step": step,
            "totalSteps": 60,
            "epoch": 1.5,
            "loss": 0.8441,
            "tokensPerSecond": 1204.0,
            "etaSeconds": 80,
        },
        **more,
    }


PREEMPTED = {
    "attempt": 2,
    "cause": "Preempted",
    "stoppedAt": 33,
    "fromStep": 30,
    "digest": "sha256:" + "9f" * 32,
    "lostSteps": 3,
    "time": THEN,
}
RESUMED = running(
    2,
    40,
    preemptions=1,
    resumes=[PREEMPTED],
    checkpoint={
        "step": 30,
        "path": "checkpoints/1/step-30",
        "digest": "sha256:" + "9f" * 32,
        "time": THEN,
        "worldSize": 1,
    },
)
SUCCEEDED = {
    **RESUMED,
    "phase": "Succeeded",
    "outcome": "Succeeded",
    "finishedAt": "2026-01-01T13:12:00Z",
    "trained": True,
    "summary": {"model": "tiny", "method": "lora"},
    "conditions": [
        ACCEPTED,
        PREPARED,
        condition("Succeeded", "True", "Published", "the model is at pvc://output/bot"),
        condition("Finished", "True", "Succeeded"),
    ],
    "output": {
        "uri": "pvc://output/bot",
        "digest": "sha256:" + "4b" * 32,
        "evaluation": {"loss": 1.03},
    },
}
FAILED = {
    "phase": "Failed",
    "outcome": "Failed",
    "tries": 1,
    "finishedAt": "2026-01-01T10:02:00Z",
    "lastFailure": {
        "class": "InvalidData",
        "code": "no-assistant-turn",
        "message": "train.jsonl:17: no assistant turn, nothing to learn from",
        "fix": "add the answer",
        "exitCode": 11,
        "time": THEN,
    },
    "conditions": [
        ACCEPTED,
        condition("Prepared", "False", "InvalidData"),
        condition("Failed", "True", "InvalidData"),
        condition("Finished", "True", "InvalidData"),
    ],
}


def token_of(api, namespace, user):
    """Make a user without any right and return its token."""
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    api.create(accounts, {"metadata": {"name": user}})
    made = api.create(f"{accounts}/{user}/token", {"spec": {"expirationSeconds": 3600}})
    return made["status"]["token"]


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
    return token_of(api, namespace, "viewer")


def write(api, namespace, status, name="bot"):
    path = f"{JOBS.format(namespace=namespace)}/{name}/status"
    body = api.get(path.removesuffix("/status"))
    api.request("PUT", path, {**body, "status": status})


class Cli:
    """A process of the command line, whose output is there as it comes."""

    def __init__(
        self, kubeconfig, folder, *words, program=(sys.executable, "-m", "finetune_cli.main")
    ):
        self.lines = []
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [*program, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=environment,
        )
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def said(self, text):
        wait_for(lambda: any(text in line for line in self.lines), timeout=30)

    def end(self, timeout=30):
        code = self.process.wait(timeout)
        self.thread.join(10)
        return code, self.lines


@contextmanager
def cli(kubeconfig, folder, *words, **more):
    started = Cli(kubeconfig, folder, *words, **more)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.wait(10)
        started.process.stdout.close()


def ended(kubeconfig, folder, *words):
    """Run a command that ends by itself, in this process; returns its exit status and its lines."""
    out = io.StringIO()
    before = os.environ.get("KUBECONFIG")
    os.environ["KUBECONFIG"] = str(kubeconfig)
    try:
        with chdir(folder), redirect_stdout(out), redirect_stderr(out):
            code = main(words)
    finally:
        os.environ.pop("KUBECONFIG")
        if before is not None:
            os.environ["KUBECONFIG"] = before
    return code, out.getvalue().splitlines()


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
    proxy = ApiProxy(api, tmp_path, viewer_of(api, namespace))
    try:
        write(api, namespace, running(1, 10))
        with cli(proxy.kubeconfig, tmp_path, "watch", "bot", "-n", namespace) as watching:
            watching.said("step 10/60")
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
    asked = []

    class Noting(ApiProxy):
        async def _pass(self, request):
            asked.append("watch" if "watch" in request.query else request.path.rpartition("/")[2])
            return await super()._pass(request)

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
    assert asked == ["bot", "finetunejobs", "watch"]


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


def test_a_job_that_is_not_there(plane, namespace, tmp_path):
    code, lines = ended(plane.kubeconfig, tmp_path, "watch", "nobody", "-n", namespace)
    assert code == 1
    assert lines == [
        f"error  no job nobody in namespace {namespace} of context tests [job-not-found]",
        "       fix: see kubectl get finetunejobs --all-namespaces, and name the namespace with -n",
    ]
    code, lines = ended(plane.kubeconfig, tmp_path, "watch", "nobody")
    assert code == 1
    assert lines[0] == (
        "error  no job nobody under finetune-jobs on this machine, and no job nobody in namespace"
        " default of context tests [job-not-found]"
    )


def test_a_user_without_the_right_reads_whom_to_ask(plane, api, namespace, job, tmp_path):
    config = json.loads(plane.kubeconfig.read_text())
    config["users"] = [{"name": "admin", "user": {"token": token_of(api, namespace, "guest")}}]
    kubeconfig = tmp_path / "guest"
    kubeconfig.write_text(json.dumps(config))
    for verb in ("watch", "logs", "retry"):
        code, lines = ended(kubeconfig, tmp_path, verb, "bot", "-n", namespace)
        assert code == 1
        assert lines[0].startswith(
            f"error  you may not read finetunejobs in namespace {namespace}:"
        )
        assert lines[0].endswith("[not-allowed]")
        assert lines[1].startswith("       fix: ask for the role that the chart aggregates to view")
        assert len(lines) == 2


def test_a_cluster_without_the_definitions(plane, tmp_path, monkeypatch):
    """What the API server says of a group that it does not serve."""
    monkeypatch.setattr(jobs, "ROOT", "/apis/absent.finetune.dev/v1alpha1")
    code, lines = ended(plane.kubeconfig, tmp_path, "watch", "bot", "-n", "default")
    assert code == 1
    assert lines == [
        "error  context tests does not know FineTuneJobs (finetune.dev/v1alpha1) [crd-missing]",
        "       fix: install the chart finetune-operator, which brings the definitions",
    ]


def test_retry_raises_the_generation_of_a_failed_job_once(plane, api, namespace, job, tmp_path):
    write(api, namespace, FAILED)
    words = ("retry", "bot", "-n", namespace)
    assert ended(plane.kubeconfig, tmp_path, *words) == (
        0,
        ["bot tries again (recovery.retryGeneration: 1)"],
    )
    spec = api.get(f"{JOBS.format(namespace=namespace)}/bot")["spec"]
    assert spec == {**SPEC, "recovery": {**SPEC.get("recovery", {}), "retryGeneration": 1}}
    code, lines = ended(plane.kubeconfig, tmp_path, *words)
    assert code == 1
    assert lines[0].startswith("error  job bot is about to try again:")
    # A watch that begins now is not ended by the failure that is over.
    code, lines = ended(plane.kubeconfig, tmp_path, "watch", "bot", "-n", namespace, "--once")
    assert (code, [line for line in lines if "Failed/" in line]) == (0, [])


def test_logs_of_pods_that_have_not_started_and_of_none(plane, api, namespace, job, tmp_path):
    words = ("logs", "bot", "-n", namespace)
    write(api, namespace, PREPARING)
    code, lines = ended(plane.kubeconfig, tmp_path, *words)
    folder = f"bot-{job['metadata']['uid'].replace('-', '')[:8]}"
    assert code == 1
    assert lines == [
        "error  no pod of job bot is there (any more); what it printed went with it [no-pods]",
        "       fix: tracebacks of processes that failed are kept in"
        f" pvc://bot-workspace/{folder}/logs, how each pod ended in"
        f" pvc://bot-workspace/{folder}/reports, and the last failure in status.lastFailure",
    ]
    labels = {
        "finetune.dev/job": "bot",
        "finetune.dev/job-uid": job["metadata"]["uid"],
        "finetune.dev/stage": "prepare",
        "finetune.dev/attempt": "1",
    }
    api.create(
        f"/api/v1/namespaces/{namespace}/pods",
        {
            "metadata": {"name": "bot-prepare-0-abcde", "labels": labels},
            "spec": {"containers": [{"name": "trainer", "image": "registry.example/trainer"}]},
        },
    )
    assert ended(plane.kubeconfig, tmp_path, *words) == (
        0,
        ["bot-prepare-0-abcde has not started: not scheduled yet"],
    )


def test_version_says_what_it_could_learn(plane, api, namespace, tmp_path):
    labels = {"app.kubernetes.io/name": "finetune-operator", "app.kubernetes.io/version": "0.1.0"}
    container = {
        "name": "operator",
        "image": "registry.example/finetune-operator:0.1.0",
        "env": [{"name": "FINETUNE_OPERATOR_TRAINER_IMAGE", "value": "registry.example/t:0.1.0"}],
    }
    api.create(
        f"/apis/apps/v1/namespaces/{namespace}/deployments",
        {
            "metadata": {"name": "finetune-operator", "labels": labels},
            "spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "template": {
                    "metadata": {"labels": {"a": "b"}},
                    "spec": {"containers": [container]},
                },
            },
        },
    )
    code, lines = ended(plane.kubeconfig, tmp_path, "version")
    place = f"({namespace}/finetune-operator)"
    assert code == 0
    assert f"operator 0.1.0  registry.example/finetune-operator:0.1.0  {place}" in lines
    assert "trainer  registry.example/t:0.1.0" in lines
    code, lines = ended(tmp_path / "none", tmp_path, "version")
    assert code == 0
    assert lines[2:] == [
        f"operator not known: no cluster is configured: {tmp_path}/none does not exist",
        "trainer  not known",
    ]
