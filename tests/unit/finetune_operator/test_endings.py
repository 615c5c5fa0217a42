"""How pods end, as the kubelet, the scheduler and the trainer leave them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune_operator.endings import ending_of, told_at
from finetune_operator.failures import classify

UID = "8c7f5e0a-4b1d-4c59-9e55-0d2f6a1b3c4d"
T0 = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def at(second: int) -> str:
    return f"2026-03-01T12:{second // 60:02d}:{second % 60:02d}Z"


def report(**changes: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 1,
        "stage": "train",
        "jobUid": UID,
        "attempt": 2,
        "claim": 2,
        "node": 0,
        "exitCode": 143,
        "message": "saved step 480",
        "step": 480,
        "checkpoint": {
            "step": 480,
            "path": "checkpoints/2/step-480",
            "digest": "sha256:" + "a" * 64,
        },
        **changes,
    }


def pod(
    code: int | None = None,
    *,
    message: Any = None,
    how: str = "Error",
    finished: int = 50,
    phase: str = "Failed",
    target: tuple[str, str] | None = None,
    told: int | None = None,
    grace: int = 150,
    **status: Any,
) -> dict[str, Any]:
    """A pod of attempt 2; ``code`` None: its container never ended."""
    metadata: dict[str, Any] = {
        "name": "bot-2-worker-0",
        "uid": "pod-1",
        "creationTimestamp": at(0),
        "labels": {
            "finetune.dev/job-uid": UID,
            "finetune.dev/stage": "train",
            "finetune.dev/attempt": "2",
        },
    }
    if told is not None:
        metadata |= {"deletionTimestamp": at(told + grace), "deletionGracePeriodSeconds": grace}
    state: dict[str, Any] = {"running": {"startedAt": at(10)}}
    if code is not None:
        ended = {"exitCode": code, "reason": how, "startedAt": at(10), "finishedAt": at(finished)}
        if message is not None:
            ended["message"] = message if isinstance(message, str) else json.dumps(message)
        state = {"terminated": ended}
    conditions = []
    if target:
        reason, text = target
        conditions.append(
            {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": reason,
                "message": text,
                "lastTransitionTime": at(40),
            }
        )
    return {
        "metadata": metadata,
        "status": {
            "phase": phase,
            "conditions": conditions,
            "containerStatuses": [
                {"name": "istio-proxy", "state": {"running": {}}},
                {"name": "pytorch", "state": state},
            ],
            **status,
        },
    }


def test_a_pod_that_runs_has_not_ended_even_while_it_is_told_to() -> None:
    assert ending_of(pod(phase="Running")) is None
    assert ending_of(pod(phase="Running", told=30)) is None
    assert ending_of(pod(phase="Running", told=30, target=("PreemptionByScheduler", "x"))) is None
    assert ending_of({}) is None


def test_told_at_is_the_request_and_not_the_last_moment() -> None:
    assert told_at(pod(told=30, grace=150)) == datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
    assert told_at(pod()) is None


# pod -> (exit code, reason, class that it alone makes of the attempt)
ENDS: dict[str, tuple[dict[str, Any], int | None, str | None, str | None]] = {
    "success": (pod(0, how="Completed", phase="Succeeded"), 0, None, None),
    "success beside a sidecar that still runs": (pod(0, how="Completed", phase="Running"), 0, None, None),
    "success while it was preempted": (
        pod(0, phase="Succeeded", target=("PreemptionByScheduler", "x"), told=30), 0, None, None,
    ),
    "a crash": (pod(1), 1, None, "Crashed"),
    "invalid data": (pod(11), 11, None, "InvalidData"),
    "saved on a signal by itself": (pod(143), 143, None, "Preempted"),
    "killed from outside": (pod(137), 137, None, "Crashed"),
    "out of memory": (pod(137, how="OOMKilled"), 137, "OOMKilled", "OutOfMemory"),
    "out of memory somewhere, and all went well": (
        pod(0, how="OOMKilled", phase="Succeeded"), 0, None, None,
    ),
    "preempted": (
        pod(143, target=("PreemptionByScheduler", "preempting to make room"), told=30),
        143, "DisruptionTarget", "Preempted",
    ),
    "evicted by the API, and crashed on the way": (
        pod(1, target=("EvictionByEvictionAPI", "Eviction API: evicting"), told=30),
        1, "DisruptionTarget", "Preempted",
    ),
    "tainted": (pod(137, target=("DeletionByTaintManager", "x"), told=30), 137, "DisruptionTarget", "Preempted"),
    "invalid data while it was preempted": (
        pod(11, target=("PreemptionByScheduler", "x"), told=30), 11, "DisruptionTarget", "InvalidData",
    ),
    "its node is gone": (
        pod(None, target=("DeletionByPodGC", "PodGC: node no longer exists")),
        None, "NodeLost", "LostInfrastructure",
    ),
    "node pressure, asked for less": (
        pod(
            137, reason="Evicted", target=("TerminationByKubelet", "The node was low on resource"),
        ), 137, "Evicted", "Preempted",
    ),
    "the node restarted": (pod(255, how="Unknown"), None, "NodeLost", "LostInfrastructure"),
    "the kubelet lost its container": (
        pod(137, how="ContainerStatusUnknown"), None, "NodeLost", "LostInfrastructure",
    ),
    "graceful shutdown of the node": (
        pod(None, reason="Terminated"),
        None, "Evicted", "Preempted",
    ),
    "turned away by the kubelet": (pod(None, reason="OutOfnvidia.com/gpu"), None, "Evicted", "Preempted"),
    "deleted, and it saved": (pod(143, told=30), 143, None, "Preempted"),
    "deleted, and it did not end in time": (pod(137, told=30), 137, "Deleted", "LostInfrastructure"),
    "deleted, and it crashed": (pod(1, told=30), 1, None, "Crashed"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_each_end_is_told_apart(name: str) -> None:
    given_pod, code, reason, class_ = ENDS[name]
    end = ending_of(given_pod)
    assert end is not None
    assert (end.exit_code, end.reason) == (code, reason)
    cause = classify("train", [end])
    assert (cause.class_ if cause else None) == class_


PRESSURE = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 52Mi. "


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (PRESSURE, "Evicted"),
        (
            PRESSURE + "Container pytorch was using 9Gi, request is 0, has larger consumption of"
            " memory. ",
            "Evicted",
        ),
        (
            PRESSURE + "Container pytorch was using 9Gi, request is 8Gi, has larger consumption of"
            " memory. ",
            "EvictedOwnLimits",
        ),
        ("Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ", "EvictedOwnLimits"),
        ('Usage of EmptyDir volume "shm" exceeds the limit "1Gi". ', "EvictedOwnLimits"),
        ('Container pytorch exceeded its local ephemeral storage limit "1Gi". ', "EvictedOwnLimits"),
        ("The node had condition: [DiskPressure]. ", "Evicted"),
    ],
)  # fmt: skip
def test_an_eviction_is_the_pods_own_doing_or_the_nodes(message: str, reason: str) -> None:
    evicted = pod(137)
    evicted["status"] |= {"reason": "Evicted", "message": message}
    end = ending_of(evicted)
    assert end is not None
    assert end.reason == reason
    assert end.message == message.strip()


def test_one_that_is_gone_has_ended_whatever_it_said_last() -> None:
    end = ending_of(pod(phase="Running", told=30, grace=0), gone=True)
    assert end is not None
    assert (end.exit_code, end.reason, end.message) == (None, "Deleted", "deleted")
    assert end.at == datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
    preempted = pod(
        phase="Running", told=30, target=("PreemptionByScheduler", "for default/urgent")
    )
    end = ending_of(preempted, gone=True)
    assert end is not None
    assert end.reason == "DisruptionTarget"
    assert end.message == "PreemptionByScheduler: for default/urgent"


def test_times_are_the_processs_own_where_there_are_any() -> None:
    end = ending_of(pod(1, finished=75))
    assert end is not None
    assert end.at == datetime(2026, 3, 1, 12, 1, 15, tzinfo=UTC)
    end = ending_of(pod(None, target=("DeletionByPodGC", "")))
    assert end is not None
    assert end.at == datetime(2026, 3, 1, 12, 0, 40, tzinfo=UTC)
    nothing = ending_of({"status": {"phase": "Failed"}})
    assert nothing is not None
    assert nothing.at == datetime(1970, 1, 1, tzinfo=UTC)


def test_the_trainers_own_report_is_taken() -> None:
    end = ending_of(pod(143, message=report()))
    assert end is not None
    assert end.report is not None
    assert end.report.step == 480
    assert end.report.checkpoint is not None
    assert end.report.checkpoint.path == "checkpoints/2/step-480"


@pytest.mark.parametrize(
    "message",
    [
        "Traceback: boom",
        "[" * 4000,
        '{"a":' * 700,
        "\x1b[31mred",
        json.dumps(report(jobUid="somebody-elses")),
        json.dumps(report(attempt=1)),
        json.dumps(report(stage="publish")),
        json.dumps(report(schemaVersion=2)),
        json.dumps(report(step=10**19)),
        json.dumps(report(step=-1)),
        json.dumps(report(evaluation={"loss": float("nan")})),
        json.dumps(report(exitCode="0")) + "x",
        json.dumps(report(unknown=1)),
        json.dumps(report(message="x" * 513)),
        json.dumps(report(checkpoint={"step": 1, "path": "../../etc", "digest": "sha256:0"})),
        json.dumps([report()]),
        "null",
        '"\\ud800"',
    ],
)
def test_a_message_that_is_no_report_of_this_attempt_is_ignored(message: str) -> None:
    end = ending_of(pod(1, message=message))
    assert end is not None
    assert end.report is None
    assert end.exit_code == 1
    assert end.message.isprintable()


def test_a_report_cannot_write_to_a_terminal() -> None:
    end = ending_of(pod(1, message=report(exitCode=1, message="a\x1b[2Jb\r\nc\u202ed")))
    assert end is not None
    assert end.report is not None
    assert end.report.message == "a [2Jb c d"


def test_what_could_not_even_start_says_so() -> None:
    end = ending_of(pod(128, how="StartError", message="exec: finetune-trainer: not found"))
    assert end is not None
    assert end.message == "StartError: exec: finetune-trainer: not found"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    ["name", "reason", "message", "status", "type", "state", "terminated", "exitCode", "finishedAt"]
)
SHAPES = st.recursive(JSON, lambda inner: st.dictionaries(FIELDS, inner, max_size=4), max_leaves=12)


@given(
    status=st.dictionaries(
        st.sampled_from(["phase", "reason", "message", "conditions", "containerStatuses"]),
        SHAPES | st.lists(SHAPES, max_size=3),
    ),
    metadata=SHAPES,
    gone=st.booleans(),
)
@example(
    status={"containerStatuses": [{"state": {"terminated": {"exitCode": True}}}]},
    metadata={},
    gone=False,
)
@example(
    status={"phase": "Failed", "conditions": "x"}, metadata={"deletionTimestamp": "soon"}, gone=True
)
@example(
    status={"containerStatuses": [{"name": [], "state": {"terminated": {"reason": {}}}}]},
    metadata={},
    gone=False,
)
def test_no_shape_of_a_pod_breaks_it(status: Any, metadata: Any, gone: bool) -> None:
    end = ending_of({"metadata": metadata, "status": status}, gone=gone)
    if end is not None:
        classify("train", [end])


@pytest.mark.parametrize(
    ("code", "told", "reason"),
    [(1, 130, None), (1, 65, "DisruptionTarget"), (137, 130, "DisruptionTarget")],
    ids=["long after it had crashed", "as it crashed", "and killed"],
)
def test_a_pod_that_crashed_before_its_node_was_drained_has_crashed(
    code: int, told: int, reason: str | None
) -> None:
    """It ended at second 60; its pod was told to go later."""
    given = pod(code, finished=60, told=told, target=("DeletionByTaintManager", "x"))
    (target,) = given["status"]["conditions"]
    target["lastTransitionTime"] = at(told)
    end = ending_of(given)
    assert end is not None
    assert end.reason == reason
