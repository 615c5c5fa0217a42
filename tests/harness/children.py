"""Children and pods as controllers and kubelets leave them, read as the operator reads them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from finetune_operator.backend import BACKENDS
from finetune_operator.failures import classify
from finetune_operator.observed import ChildState

UID, CHILD_UID = "8c7f5e0a-4b1d-4c59-9e55-0d2f6a1b3c4d", "child-1"
KINDS = ("PyTorchJob", "Job")


def at(second: int) -> str:
    """Return a time as objects have it, so many seconds after noon."""
    return f"2026-03-01T12:{second // 60:02d}:{second % 60:02d}Z"


def moment(second: int) -> datetime:
    """Return the same time as a state has it."""
    return datetime(2026, 3, 1, 12, second // 60, second % 60, tzinfo=UTC)


def child(
    kind: str,
    *conditions: str,
    nodes: int = 2,
    suspended: bool = False,
    queue: str | None = None,
    started: int | None = 5,
    **metadata: Any,
) -> dict[str, Any]:
    """Return a child as its controller leaves it; ``conditions`` hold."""
    spec: dict[str, Any] = {
        "PyTorchJob": {
            "runPolicy": {"suspend": suspended},
            "pytorchReplicaSpecs": {"Worker": {"replicas": nodes}},
        },
        "Job": {"suspend": suspended, "parallelism": nodes, "completions": nodes},
    }[kind]
    held: list[dict[str, Any]] = [{"type": one, "status": "True"} for one in conditions]
    held.append({"type": "Restarting", "status": "False"})
    return {
        "metadata": {
            "name": "bot-1",
            "uid": CHILD_UID,
            "creationTimestamp": at(0),
            "labels": {"kueue.x-k8s.io/queue-name": queue} if queue else {},
            **metadata,
        },
        "spec": spec,
        "status": {
            "conditions": held,
            **({"startTime": at(started)} if started is not None else {}),
        },
    }


def pod(
    kind: str,
    index: int,
    state: str = "running",
    *,
    uid: str = "",
    code: int = 0,
    how: str = "Error",
    begins: int = 10,
    ends: int = 60,
    told: int | None = None,
    target: str | None = None,
    owner: str = CHILD_UID,
    **more: Any,
) -> dict[str, Any]:
    """Return a pod; ``state``: pending, running or ended."""
    label = {
        "PyTorchJob": "training.kubeflow.org/replica-index",
        "Job": "batch.kubernetes.io/job-completion-index",
    }[kind]
    metadata: dict[str, Any] = {
        "name": f"bot-1-worker-{index}" if kind == "PyTorchJob" else f"bot-1-{index}-abcde",
        "uid": uid or f"pod-{index}",
        "creationTimestamp": at(begins),
        "labels": {label: str(index), "finetune.dev/job-uid": UID},
        "ownerReferences": [{"uid": owner, "controller": True}],
    }
    if told is not None:
        metadata |= {"deletionTimestamp": at(told + 150), "deletionGracePeriodSeconds": 150}
    status: dict[str, Any] = {"phase": "Running", "conditions": []}
    if state == "pending":
        status["phase"] = "Pending"
    elif state == "running":
        running = {"running": {"startedAt": at(begins)}}
        status["containerStatuses"] = [{"name": "pytorch", "state": running}]
    else:
        ended = {
            "exitCode": code,
            "reason": how if code else "Completed",
            "startedAt": at(begins),
            "finishedAt": at(ends),
        }
        status["phase"] = "Failed" if code else "Succeeded"
        status["containerStatuses"] = [{"name": "pytorch", "state": {"terminated": ended}}]
    if target:
        status["conditions"].append(
            {"type": "DisruptionTarget", "status": "True", "reason": target, "message": "make room"}
        )
    return {"metadata": metadata, "status": {**status, **more}}


def read(kind: str, one: dict[str, Any], pods: Sequence[dict[str, Any]], **more: Any) -> ChildState:
    """Return the state that the backend of this kind reads off a child and its pods."""
    return BACKENDS[kind].read(one, pods, **more)


def cause(found: ChildState) -> str | None:
    """Return the class of the failure that ended a gang in training."""
    named = classify("train", found.ends)
    return named.class_ if named else None
