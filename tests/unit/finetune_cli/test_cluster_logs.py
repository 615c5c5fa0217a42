"""What is done with the lines of pods' logs.

The words of API server and kubelet are played here; real logs are read in the end-to-end tests.
"""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from finetune_api.problem import Problem, Refused
from finetune_cli.cluster import pod_logs
from finetune_cli.cluster.connection import ApiRefusal, NoAnswer
from finetune_cli.cluster.jobs import jobs_path, parse
from finetune_cli.cluster.pod_logs import Follower, pods_path, print_logs, read_on
from finetune_cli.cluster.pods import JobPod, Wanted
from harness.scripted_cluster import ScriptedCluster

PODS = pods_path("team")
JOBS = jobs_path("team")
POD = JobPod("bot-1-0", "u1", "train", 1, 0, "trainer", "running")


def stamp(second: int, text: str) -> str:
    return f"2026-01-01T10:00:{second:02}.000000000Z {text}"


def log(name: str) -> str:
    return f"{PODS}/{name}/log"


def test_a_log_that_breaks_off_goes_on_without_a_line_twice() -> None:
    ends = iter([False, False, True])
    cluster = ScriptedCluster(
        {},
        {
            log("bot-1-0"): [
                [stamp(1, "one"), stamp(2, "two  spaced"), NoAnswer("reset")],
                [stamp(2, "two  spaced"), stamp(3, "three")],
                [stamp(3, "three"), stamp(4, "four")],
            ]
        },
    )
    read = list(read_on(cluster, POD, lambda: next(ends), lambda _: None))
    assert read == ["one", "two  spaced", "three", "four"]
    since = [query.get("sinceTime", "")[17:19] for _, query in cluster.asked]
    assert since == ["", "02", "03"]
    assert cluster.asked[0][1] == {"container": "trainer", "follow": "true", "timestamps": "true"}


@pytest.mark.parametrize(("code", "raises"), [(404, False), (403, True)])
def test_a_pod_that_is_gone_ends_its_log_a_missing_right_ends_all(code: int, raises: bool) -> None:
    cluster = ScriptedCluster({}, {log("bot-1-0"): [ApiRefusal(code, "", "")]})
    reading = read_on(cluster, POD, lambda: False, lambda _: None)
    if raises:
        with pytest.raises(ApiRefusal):
            list(reading)
    else:
        assert list(reading) == []


def test_several_pods_have_their_name_before_each_line() -> None:
    other = JobPod("bot-1-1", "u2", "train", 1, 1, "trainer", "waiting", "ContainerCreating")
    cluster = ScriptedCluster({}, {log("bot-1-0"): [["one", "two"]]})
    out: list[str] = []
    err: list[str] = []
    print_logs(cluster, (POD, other), out.append, err.append)
    assert out == ["[bot-1-0] one", "[bot-1-0] two"]
    assert err == ["bot-1-1 has not started: ContainerCreating"]
    out.clear()
    print_logs(cluster, (POD,), out.append, err.append)
    assert out == ["one", "two"]


def gang(*answers: list[str | Exception] | Exception) -> tuple[ScriptedCluster, list[JobPod]]:
    """A gang of running pods, and what is answered when their logs are read."""
    names = [f"bot-1-{rank}" for rank in range(len(answers))]
    pods = [
        JobPod(name, f"u{rank}", "train", 1, rank, "trainer", "running")
        for rank, name in enumerate(names)
    ]
    logs = {log(name): [answer] for name, answer in zip(names, answers, strict=True)}
    return ScriptedCluster({}, logs), pods


def test_a_log_that_cannot_be_read_does_not_hide_the_others() -> None:
    lost = ApiRefusal(500, "InternalError", "dial tcp 10.0.0.9:10250: i/o timeout")
    cluster, pods = gang(["one"], lost, ["begun", NoAnswer("reset")], ["four"])
    out: list[str] = []
    err: list[str] = []
    assert print_logs(cluster, tuple(pods), out.append, err.append)
    assert out == ["[bot-1-0] one", "[bot-1-2] begun", "[bot-1-3] four"]
    assert err == [
        "bot-1-1: its log cannot be read: 500 InternalError: dial tcp 10.0.0.9:10250: i/o timeout",
        "bot-1-2: its log cannot be read: reset",
    ]


def test_no_log_can_be_read() -> None:
    cluster, pods = gang(ApiRefusal(400, "BadRequest", "x"), ApiRefusal(404, "NotFound", "y"))
    err: list[str] = []
    assert not print_logs(cluster, tuple(pods), print, err.append)
    assert len(err) == 2


def test_logs_that_may_not_be_read_are_not_asked_for_one_by_one() -> None:
    cluster, pods = gang(ApiRefusal(403, "Forbidden", "no"), ["two"])
    with pytest.raises(ApiRefusal):
        print_logs(cluster, tuple(pods), print, print)
    assert len(cluster.asked) == 1


@pytest.mark.parametrize("at", ["log", "watch"])
def test_a_token_that_goes_bad_while_logs_are_followed_ends_with_a_word(at: str) -> None:
    bad = Refused(Problem(code="token-malformed", message="no token"))
    cluster = ScriptedCluster(
        {PODS: [listed("1", pod(1, "running", "1"))], JOBS: [listed("1", job(None, "1"))]},
        {
            PODS: [[bad] if at == "watch" else [threading.Event().wait]],
            JOBS: [[threading.Event().wait]],
            log("bot-1-0"): [[bad] if at == "log" else [threading.Event().wait]],
        },
    )
    with pytest.raises(Refused):
        Follower(cluster, parse(job(None, "1")), Wanted(), print, print).run()


def pod(attempt: int, state: str, version: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"bot-{attempt}-0",
            "uid": f"pod-{attempt}",
            "resourceVersion": version,
            "labels": {"finetune.dev/stage": "train", "finetune.dev/attempt": str(attempt)},
        },
        "spec": {"containers": [{"name": "trainer"}]},
        "status": {"containerStatuses": [{"name": "trainer", "state": {state: {}}}]},
    }


def job(outcome: str | None, version: str) -> dict[str, Any]:
    status = {"outcome": outcome} if outcome else {}
    return {
        "metadata": {"name": "bot", "namespace": "team", "uid": "j", "resourceVersion": version},
        "spec": {},
        "status": {**status, "attempt": 1},
    }


def listed(version: str, *items: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": version}, "items": list(items)}


def event(kind: str, item: dict[str, Any]) -> str:
    return json.dumps({"type": kind, "object": item})


def test_following_goes_over_to_the_next_attempt_and_ends_with_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pod_logs, "PAUSE", 0.01)
    first_read, second_read = threading.Event(), threading.Event()
    for_ever = threading.Event()

    def wait(for_: threading.Event) -> Any:
        return lambda: for_.wait(20)

    cluster = ScriptedCluster(
        {
            PODS: [listed("1", pod(1, "running", "1")), listed("9", pod(2, "terminated", "6"))],
            JOBS: [listed("1", job(None, "1"))],
        },
        {
            PODS: [
                [
                    wait(first_read),
                    event("MODIFIED", pod(1, "terminated", "2")),
                    event("ADDED", pod(2, "waiting", "3")),
                    event("MODIFIED", pod(2, "running", "4")),
                    event("DELETED", pod(1, "terminated", "5")),
                    wait(second_read),
                    event("MODIFIED", pod(2, "terminated", "6")),
                    for_ever.wait,
                ]
            ],
            JOBS: [[wait(second_read), event("MODIFIED", job("Succeeded", "8")), for_ever.wait]],
            log("bot-1-0"): [[stamp(1, "step 1"), first_read.set], ApiRefusal(404, "", "")],
            log("bot-2-0"): [[stamp(2, "step 2"), second_read.set], [stamp(3, "done")]],
        },
    )
    out: list[str] = []
    err: list[str] = []
    there = Follower(cluster, parse(job(None, "1")), Wanted(), out.append, err.append).run()
    for_ever.set()
    assert there
    assert out == ["[bot-1-0] step 1", "[bot-2-0] step 2", "[bot-2-0] done"]
    assert err == ["bot-2-0 has not started yet: not scheduled yet"]


def test_following_one_attempt_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_logs, "PAUSE", 0.01)
    for_ever = threading.Event()
    cluster = ScriptedCluster(
        {
            PODS: [listed("1", pod(1, "terminated", "1"), pod(2, "running", "1"))],
            JOBS: [listed("1", job(None, "1"))],
        },
        {PODS: [[for_ever.wait]], JOBS: [[for_ever.wait]], log("bot-1-0"): [[stamp(1, "step 1")]]},
    )
    out: list[str] = []
    there = Follower(cluster, parse(job(None, "1")), Wanted(attempt=1), out.append, print).run()
    for_ever.set()
    assert (there, out) == (True, ["[bot-1-0] step 1"])


def test_a_follower_that_may_not_look_says_so() -> None:
    refusal = ApiRefusal(403, "Forbidden", "pods is forbidden")
    cluster = ScriptedCluster({PODS: [refusal], JOBS: [listed("1")]}, {JOBS: [NoAnswer("")]})
    with pytest.raises(ApiRefusal):
        Follower(cluster, parse(job(None, "1")), Wanted(), print, print).run()
