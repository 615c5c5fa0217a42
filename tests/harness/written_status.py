"""Statuses of a job from its first word to its end, written as an operator would."""

from __future__ import annotations

from typing import Any

from harness.control_plane import Api
from harness.operator_driver import JOBS

THEN = "2026-01-01T10:00:00Z"


def condition(type_: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    """Return a condition."""
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


def running(attempt: int, step: int, **more: Any) -> dict[str, Any]:
    """Return the status of a job that trains."""
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


def write(api: Api, namespace: str, status: dict[str, Any], name: str = "bot") -> None:
    """Give a job a status."""
    path = f"{JOBS.format(namespace=namespace)}/{name}/status"
    body = api.get(path.removesuffix("/status"))
    api.request("PUT", path, {**body, "status": status})
