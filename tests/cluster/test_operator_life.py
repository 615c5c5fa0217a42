"""A job's life on a real API server; the pods are played, the operator is the real process."""

import json
from contextlib import contextmanager

import pytest

from harness.operator_driver import JOBS, Watched, make_namespace, operator, status_of, wait_for
from harness.pod_player import PodPlayer, Run
from harness.stage_config import SPEC, merged


def job(name, **spec):
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": merged(SPEC, spec),
    }


@pytest.fixture
def namespace(api, definitions, request):
    del definitions
    return make_namespace(api, request.node.name.replace("_", "-")[-40:].strip("-"))


@contextmanager
def playing(api, namespace, script):
    player = PodPlayer(api, namespace, script)
    player.start()
    try:
        yield player
    finally:
        player.stop()
        assert not player.errors


def outcome(api, namespace, name):
    status = status_of(api, namespace, name)
    return status if status.get("outcome") else None


def conditions(status):
    return {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}


def test_a_job_from_pending_to_succeeded(plane, api, namespace, tmp_path):
    log = tmp_path / "operator.log"
    with (
        playing(api, namespace, lambda *_: Run(seconds=0.7)) as player,
        operator(plane.kubeconfig, namespace, log) as process,
    ):
        api.create(JOBS.format(namespace=namespace), job("bot"))
        watched = Watched(api, namespace, "bot")
        status = wait_for(lambda: outcome(api, namespace, "bot"), process)
        watched.stop()

    assert watched.phases() == [
        "Pending",
        "Preparing",
        "Starting",
        "Running",
        "Publishing",
        "Succeeded",
    ]
    assert player.made == ["bot-prepare-0-abcde", "bot-1-0-abcde", "bot-publish-0-abcde"]
    assert player.most_alive == {"bot": 1}
    assert conditions(status) == {
        "Accepted": ("True", "Accepted"),
        "Prepared": ("True", "DataReady"),
        "Running": ("False", "Trained"),
        "Succeeded": ("True", "Published"),
        "Finished": ("True", "Succeeded"),
    }
    assert status["backend"] == "Job"
    assert status["attempt"] == 1
    assert status["failures"] == status["preemptions"] == 0
    assert status["checkpoint"]["step"] == 60
    uid = api.get(f"{JOBS.format(namespace=namespace)}/bot")["metadata"]["uid"].replace("-", "")
    assert status["output"] == {
        "uri": f"pvc://bot-workspace/bot-{uid[:8]}/output",
        "digest": "sha256:" + "b" * 64,
        "evaluation": {"loss": 1.5},
    }
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert not [line for line in lines if line["level"] == "error"]
    assert process.popen.returncode == 0
