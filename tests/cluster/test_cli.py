"""The command line against a real API server; statuses are written by the test.

Logs of real pods need a kubelet: they are read in the end-to-end tests. Here stand what is found,
what is said where nothing can be read, and, in the unit tests, what is done with the lines.
"""

import json

from finetune_cli.cluster import jobs
from harness.caller import Caller
from harness.cli_process import ended
from harness.operator_driver import JOBS
from harness.stage_config import SPEC
from harness.written_status import FAILED, PREPARING, write


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
    config["users"] = [
        {"name": "admin", "user": {"token": Caller.made(api, namespace, "guest").token}}
    ]
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
