"""A job's life on a real API server; the pods are played, the operator is the real process."""

import json
import threading
import time
import urllib.request
from contextlib import contextmanager

import pytest

from harness.api_proxy import ApiProxy, EachWriteTwice
from harness.operator_driver import (
    IMAGE,
    JOBS,
    Watched,
    make_namespace,
    operator,
    operator_token,
    status_of,
    wait_for,
)
from harness.operator_forks import Forks
from harness.pod_player import PodPlayer, Run
from harness.processes import free_port
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
        wait_for(lambda: watched.phases()[-1:] == [status["phase"]], process)
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


def preempted_once(stage, attempt, node):
    del node
    if stage == "train" and attempt == 1:
        return Run(exit_code=143, step=30, checkpoint=30)
    return Run()


FLAGS = ["--trainer-image", IMAGE, "--probe-address", "127.0.0.1", "--probe-port", "0"]


def test_killed_before_and_after_every_write_a_job_ends_as_undisturbed(
    plane, api, namespace, tmp_path
):
    """One life in which no operator lives longer than until its first write.

    It is killed before the API server sees a write, and the next one after that write was stored
    and before the answer comes: each write of the life is met in both ways.
    """
    proxy = ApiProxy(api, tmp_path, operator_token(api, namespace))
    forks = Forks(proxy.kubeconfig, tmp_path / "operator.log")
    cut = EachWriteTwice()
    proxy.cut, proxy.killed = cut, forks.kill
    try:
        with playing(api, namespace, preempted_once) as player:
            made = api.create(JOBS.format(namespace=namespace), job("bot"))
            uid = made["metadata"]["uid"]
            player.pause = 0.3
            deadline, asked = time.monotonic() + 150, 0.0
            while True:
                if not forks.alive():
                    forks.start("--namespaces", namespace, *FLAGS)
                now = time.monotonic()
                if now - asked > 0.5:
                    if outcome(api, namespace, "bot"):
                        break
                    asked = now
                assert now < deadline, f"{len(cut.cuts)} cuts, the last at {cut.cuts[-1]}"
                time.sleep(0.02)
        status = status_of(api, namespace, "bot")
    finally:
        forks.stop()
        proxy.stop()

    stored = [write for when, write in cut.cuts if when == "after"]
    created = [write.rpartition("/")[2] for write in stored if write.startswith("POST")]
    folder = f"bot-{uid.replace('-', '')[:8]}"
    assert created == [
        f"{folder}-resolved",
        "bot-workspace",
        "bot-prepare-config",
        "bot-prepare",
        f"{folder}-prepared",
        "bot-1-config",
        "bot-1",
        "bot-2-config",
        "bot-2",
        "bot-publish-config",
        "bot-publish",
    ]
    assert len([write for write in stored if write.startswith("PUT")]) >= 5
    assert [write for write in proxy.passed if "/events/" not in write] == []
    assert player.made == [
        "bot-prepare-0-abcde",
        "bot-1-0-abcde",
        "bot-2-0-abcde",
        "bot-publish-0-abcde",
    ]
    assert player.most_alive == {"bot": 1}
    assert (status["outcome"], status["attempt"]) == ("Succeeded", 2)
    assert (status["failures"], status["preemptions"]) == (0, 1)
    assert [(r["cause"], r["fromStep"]) for r in status["resumes"]] == [("Preempted", 30)]
    assert status["checkpoint"]["path"] == "checkpoints/2/step-60"
    assert conditions(status) == {
        "Accepted": ("True", "Accepted"),
        "Prepared": ("True", "DataReady"),
        "Running": ("False", "Trained"),
        "Recovering": ("False", "NotRecovering"),
        "Succeeded": ("True", "Published"),
        "Finished": ("True", "Succeeded"),
    }


def test_at_rest_nothing_is_written_and_an_outage_and_a_second_operator_change_nothing(
    api, namespace, tmp_path, plane
):
    """A job trains while nothing changes, while the API server is away, and with two operators."""
    ends = threading.Event()

    def script(stage, attempt, node):
        del attempt, node
        return Run(forever=stage == "train" and not ends.is_set())

    def phase():
        return status_of(api, namespace, "bot").get("phase")

    proxy = ApiProxy(api, tmp_path, operator_token(api, namespace))
    flags = ["--progress-seconds", "1", "--unreachable-seconds", "1"]
    one = operator(proxy.kubeconfig, namespace, tmp_path / "one.log", *flags)
    other = operator(proxy.kubeconfig, namespace, tmp_path / "other.log", *flags)
    try:
        with playing(api, namespace, script) as player, one as first, other as second:
            api.create(JOBS.format(namespace=namespace), job("bot"))
            wait_for(lambda: phase() == "Running", first)
            time.sleep(3)
            before = len(proxy.writes)
            time.sleep(7)  # seven looks and a full list
            at_rest = proxy.writes[before:]
            proxy.away = True
            time.sleep(3)
            ends.set()
            time.sleep(3)
            proxy.away = False
            status = wait_for(lambda: outcome(api, namespace, "bot"), first, 90)
            assert not first.ended(), first.tail()
            assert not second.ended(), second.tail()
    finally:
        proxy.stop()

    assert at_rest == []
    assert status["outcome"] == "Succeeded"
    assert (status["attempt"], status["failures"], status["preemptions"]) == (1, 0, 0)
    assert player.made == ["bot-prepare-0-abcde", "bot-1-0-abcde", "bot-publish-0-abcde"]
    assert player.most_alive == {"bot": 1}


def ask(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.status, answer.read().decode()


def test_suspended_it_saves_and_goes_on_from_there(plane, api, namespace, tmp_path):
    def script(stage, attempt, node):
        del node
        return Run(forever=stage == "train" and attempt == 1)

    path = f"{JOBS.format(namespace=namespace)}/bot"

    def suspend(value):
        body = {"spec": {"suspend": value}}
        api.request("PATCH", path, body, "application/merge-patch+json")

    def phase():
        return status_of(api, namespace, "bot").get("phase")

    port = free_port()
    log = tmp_path / "operator.log"
    with (
        playing(api, namespace, script) as player,
        operator(plane.kubeconfig, namespace, log, "--probe-port", str(port)) as process,
    ):
        api.create(JOBS.format(namespace=namespace), job("bot"))
        wait_for(lambda: phase() == "Running", process)
        assert ask(port, "/healthz") == ask(port, "/readyz") == (200, "ok")
        assert 'finetune_children_created_total{stage="train"} 1.0' in ask(port, "/metrics")[1]
        suspend(True)
        wait_for(lambda: phase() == "Suspended", process)
        suspended = status_of(api, namespace, "bot")
        suspend(False)
        status = wait_for(lambda: outcome(api, namespace, "bot"), process)

    assert suspended["checkpoint"]["step"] == 30
    assert conditions(suspended)["Suspended"] == ("True", "Suspended")
    assert status["outcome"] == "Succeeded"
    assert (status["attempt"], status["failures"], status["preemptions"]) == (2, 0, 0)
    assert [(r["cause"], r["fromStep"]) for r in status["resumes"]] == [("Stopped", 30)]
    assert player.made == [
        "bot-prepare-0-abcde",
        "bot-1-0-abcde",
        "bot-2-0-abcde",
        "bot-publish-0-abcde",
    ]
    assert player.most_alive == {"bot": 1}
