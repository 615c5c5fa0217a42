"""A job's life on a real API server; the pods are played, the operator is the real process."""

import json
import threading
import time
import urllib.request

import pytest

from harness.api_proxy import ApiProxy
from harness.jobs import folder_of, playing
from harness.killed_operators import killed_operators
from harness.operator_driver import Watched, operator, operator_token, wait_for
from harness.played_runs import Run, first_try_of
from harness.pod_player import PodPlayer
from harness.processes import free_port


def conditions(status):
    return {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}


def test_a_job_from_pending_to_succeeded(plane, jobs, tmp_path):
    log = tmp_path / "operator.log"
    shows = {"prepare": "Preparing", "train": "Running", "publish": "Publishing"}
    watching = []

    def until_it_is_shown(stage, *_):
        return Run(forever=not watching or shows[stage] not in watching[0].phases())

    with (
        playing(PodPlayer(jobs.api, jobs.namespace, until_it_is_shown)) as player,
        operator(plane.kubeconfig, jobs.namespace, log) as process,
    ):
        uid = jobs.submit("bot")
        watching.append(watched := Watched(jobs.api, jobs.namespace, "bot"))
        status = wait_for(lambda: jobs.outcome("bot"), process)
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
    assert status["output"] == {
        "uri": f"pvc://bot-workspace/{folder_of('bot', uid)}/output",
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


@pytest.mark.timeout(600)
def test_killed_before_and_after_every_write_a_job_ends_as_undisturbed(jobs, tmp_path):
    """No operator lives longer than until its first write; each is met before and after it."""
    player = PodPlayer(jobs.api, jobs.namespace, preempted_once, pause=0.3)
    with killed_operators(jobs, tmp_path) as operators, playing(player):
        uid = jobs.submit("bot")
        operators.work_until_ended("bot")

    status, folder = jobs.status("bot"), folder_of("bot", uid)
    assert operators.stored("POST") == [
        f"{folder}-resolved",
        "bot-workspace",
        "bot-prepare",
        "bot-1",
        "bot-2",
        "bot-publish",
    ]
    assert len(operators.stored("PUT")) >= 5
    assert operators.survived() == []
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
    jobs, tmp_path
):
    """A job trains while nothing changes, while the API server is away, and with two operators."""
    ends = threading.Event()

    def script(stage, attempt, node):
        del attempt, node
        return Run(forever=stage == "train" and not ends.is_set())

    proxy = ApiProxy(jobs.api, tmp_path, operator_token(jobs.api, jobs.namespace))

    def wrote_nothing():
        before = len(proxy.writes)
        time.sleep(3)
        return len(proxy.writes) == before

    flags = ["--progress-seconds", "1", "--unreachable-seconds", "1"]
    one = operator(proxy.kubeconfig, jobs.namespace, tmp_path / "one.log", *flags)
    other = operator(proxy.kubeconfig, jobs.namespace, tmp_path / "other.log", *flags)
    try:
        with (
            playing(PodPlayer(jobs.api, jobs.namespace, script)) as player,
            one as first,
            other as second,
        ):
            jobs.submit("bot")
            wait_for(lambda: jobs.phase("bot") == "Running", first)
            wait_for(wrote_nothing, first, 60)  # Events of the beginning give way to looks
            before = len(proxy.writes)
            time.sleep(7)  # seven looks and a full list
            at_rest = proxy.writes[before:]
            proxy.away = True
            time.sleep(3)
            ends.set()
            time.sleep(3)
            proxy.away = False
            status = wait_for(lambda: jobs.outcome("bot"), first, 90)
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


def test_suspended_it_saves_and_goes_on_from_there(plane, jobs, tmp_path):
    def suspend(value):
        jobs.change("finetunejobs", "bot", {"spec": {"suspend": value}})

    port = free_port()
    log = tmp_path / "operator.log"
    with (
        playing(PodPlayer(jobs.api, jobs.namespace, first_try_of("train"))) as player,
        operator(plane.kubeconfig, jobs.namespace, log, "--probe-port", str(port)) as process,
    ):
        uid = jobs.submit("bot")
        wait_for(lambda: jobs.phase("bot") == "Running", process)
        assert ask(port, "/healthz") == ask(port, "/readyz") == (200, "ok")
        assert 'finetune_children_created_total{stage="train"} 1.0' in ask(port, "/metrics")[1]
        suspend(True)
        wait_for(lambda: jobs.phase("bot") == "Suspended", process)
        suspended = jobs.status("bot")
        suspend(False)
        status = wait_for(lambda: jobs.outcome("bot"), process)
        maps = jobs.names("configmaps")

    folder = folder_of("bot", uid)
    assert maps == [f"{folder}-resolved"], "none of an attempt"
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
