"""A job of a cluster as it is read, and what is said where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.problem import Refused
from finetune_cli.cluster.connection import ApiRefusal, NoAnswer
from finetune_cli.cluster.jobs import parse, progress_of, read_job, read_status
from finetune_cli.place import answered
from harness.scripted_cluster import ScriptedCluster

PATH = "/apis/finetune.dev/v1alpha1/namespaces/team/finetunejobs/bot"
THEN = "2026-01-01T10:00:00Z"


def body(spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "bot",
            "namespace": "team",
            "uid": "1234abcd-0000-4000-8000-000000000000",
            "resourceVersion": "7",
            "generation": 2,
            "creationTimestamp": THEN,
        },
        "spec": spec or {},
        "status": status,
    }


def test_the_folder_of_a_job() -> None:
    assert parse(body()).folder == "pvc://bot-workspace/bot-1234abcd"
    named = parse(body({"workspace": {"claimName": "shared"}}))
    assert named.folder == "pvc://shared/bot-1234abcd"


@pytest.mark.parametrize(
    ("outcome", "asked", "done", "ended"),
    [
        (None, None, 0, False),
        ("Succeeded", None, 0, True),
        ("Succeeded", 3, 0, True),
        ("Failed", None, 0, True),
        ("Failed", 1, 0, False),
        ("Failed", 1, 1, True),
    ],
)
def test_the_end_of_a_job(outcome: str | None, asked: int | None, done: int, ended: bool) -> None:
    spec = {} if asked is None else {"recovery": {"retryGeneration": asked}}
    status: dict[str, Any] = {"retryGeneration": done}
    if outcome:
        status["outcome"] = outcome
    assert parse(body(spec, **status)).ended is ended


def test_what_a_newer_operator_says_is_left_out_and_the_rest_is_kept() -> None:
    condition = {"status": "True", "reason": "Fine", "lastTransitionTime": THEN}
    told = {
        "phase": "Brewing",
        "attempt": 3,
        "moon": {"phase": "full"},
        "conditions": [
            {**condition, "type": "Accepted", "shade": "green"},
            {**condition, "type": "Brewed"},
            {**condition, "type": "Running"},
        ],
        "progress": {"step": 5, "totalSteps": 60, "colour": "blue"},
        "lastFailure": {"class": "Spilled", "code": "x", "message": "y", "time": THEN},
    }
    status = read_status(told)
    assert (status.phase, status.attempt, status.last_failure) == (None, 3, None)
    assert [one.type for one in status.conditions] == ["Accepted", "Running"]
    assert status.progress is not None
    assert (status.progress.step, status.progress.total_steps) == (5, 60)
    assert told["progress"] == {"step": 5, "totalSteps": 60, "colour": "blue"}


def test_progress_of_an_attempt() -> None:
    told = {"step": 31, "totalSteps": 56, "loss": 0.84, "etaSeconds": 80}
    found = progress_of(parse(body(attempt=2, progress=told)))
    assert found is not None
    assert (found.attempt, found.step, found.total_steps, found.loss) == (2, 31, 56, 0.84)
    assert progress_of(parse(body(attempt=2))) is None
    assert progress_of(parse(body(progress=told))) is None


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            ApiRefusal(404, "NotFound", 'finetunejobs.finetune.dev "bot" not found'),
            "job-not-found",
            "no job bot in namespace team of context tests",
        ),
        (
            ApiRefusal(404, "", "404 page not found"),
            "crd-missing",
            "context tests does not know FineTuneJobs (finetune.dev/v1alpha1)",
        ),
        (
            ApiRefusal(401, "Unauthorized", "Unauthorized"),
            "not-logged-in",
            "context tests does not accept the credentials of the kubeconfig",
        ),
        (
            ApiRefusal(403, "Forbidden", "finetunejobs is forbidden"),
            "not-allowed",
            "you may not read finetunejobs in namespace team: finetunejobs is forbidden",
        ),
        (
            ApiRefusal(500, "InternalError", "etcd is away"),
            "cluster-refused",
            "cannot read finetunejobs: 500 etcd is away",
        ),
        (
            NoAnswer("Connection refused"),
            "cluster-unreachable",
            "the API server of context tests does not answer: Connection refused",
        ),
    ],
)
def test_a_job_that_cannot_be_read(error: Exception, code: str, message: str) -> None:
    cluster = ScriptedCluster({PATH: [error]})
    with pytest.raises(Refused) as refused:
        answered(cluster, lambda: read_job(cluster, "bot"))
    (problem,) = refused.value.problems
    assert (problem.code, problem.message) == (code, message)
    assert problem.fix
