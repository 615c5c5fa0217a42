"""The gauge of jobs: by phase and reason, from the list of all jobs, with labels that are bounded."""

import asyncio

import pytest

from finetune_api.status import JobStatus
from finetune_operator import metrics
from finetune_operator.answers import error_of
from finetune_operator.job_counts import kind_of
from finetune_operator.kube import KubeError
from finetune_operator.main import Operator
from finetune_operator.plan.situation import text_of
from finetune_operator.refusal import refused
from finetune_operator.settings import Settings
from harness.simulation import START


def job(name, phase=None, reason="", namespace="team"):
    status = {"phase": phase, "summary": {"reason": reason}} if phase else {}
    metadata = {"namespace": namespace, "name": name, "resourceVersion": "7", "uid": name}
    return {"metadata": metadata, "status": status}


def series():
    """Return the gauge as Prometheus reads it."""
    lines = [line for line in metrics.text().decode().splitlines() if not line.startswith("#")]
    return sorted(line for line in lines if line.startswith("finetune_jobs{"))


def listing(*namespaces):
    """Return an operator, and its cluster: namespace -> jobs, or the code of a refusal."""
    cluster = {}

    async def ask(method, path, body=None, query=None):
        del method, body, query
        wanted = path.split("/")[5] if "/namespaces/" in path else None
        found = [jobs for where, jobs in cluster.items() if wanted in (None, where)]
        for jobs in found:
            if isinstance(jobs, int):
                raise error_of(jobs, {"message": "no"}, "", None)
        return {
            "metadata": {"resourceVersion": "9"},
            "items": [one for jobs in found for one in jobs],
        }

    operator = Operator(Settings(trainer_image="x", namespaces=namespaces))
    operator.kube._ask = ask
    return operator, cluster


def test_jobs_are_counted_as_they_were_listed_and_those_that_went_no_longer():
    async def run():
        operator, cluster = listing()
        cluster["team"] = [
            job("a", "Queued", "WaitingForRoom"),
            job("b", "Queued", "WaitingForRoom"),
            job("c", "Running"),
            job("new"),
        ]
        await operator.jobs.read()
        assert series() == [
            'finetune_jobs{phase="Pending",reason=""} 1.0',
            'finetune_jobs{phase="Queued",reason="WaitingForRoom"} 2.0',
            'finetune_jobs{phase="Running",reason=""} 1.0',
        ]
        cluster["team"] = [job("b", "Failed", "OutOfMemory"), job("c", "Running")]
        await operator.jobs.read()
        assert series() == [
            'finetune_jobs{phase="Failed",reason="OutOfMemory"} 1.0',
            'finetune_jobs{phase="Running",reason=""} 1.0',
        ]

    asyncio.run(run())


def test_a_namespace_without_an_answer_keeps_its_numbers_and_one_that_is_gone_does_not():
    async def run():
        operator, cluster = listing("a", "b")
        cluster |= {"a": [job("x", "Running")], "b": [job("y", "Running")]}
        await operator.jobs.read()
        assert series() == ['finetune_jobs{phase="Running",reason=""} 2.0']
        cluster |= {"a": [], "b": 500}
        with pytest.raises(KubeError):
            await operator.jobs.read()
        assert series() == ['finetune_jobs{phase="Running",reason=""} 1.0']
        cluster |= {"b": 403}
        await operator.jobs.read()
        assert series() == []

    asyncio.run(run())


def test_a_job_that_is_not_accepted_counts_as_such_whatever_its_problem():
    status = refused(JobStatus(), 1, "OverLimit", "no", START).to_json()
    assert kind_of({"status": status}) == ("Pending", "NotAccepted")
    since = text_of(START)
    accepted = {
        "type": "Accepted",
        "status": "True",
        "reason": "Accepted",
        "lastTransitionTime": since,
    }
    again = {**status, "conditions": [accepted], "summary": {"reason": "BackOff"}}
    assert kind_of({"status": again}) == ("Pending", "BackOff")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (None, ("Pending", "")),
        ({"phase": "Queued", "summary": {"reason": "Qqqq"}}, ("Queued", "Other")),
        ({"phase": "Dreaming"}, ("Other", "")),
        ({"phase": ["Queued"], "summary": "x", "conditions": {"a": 1}}, ("Other", "")),
        ({"phase": "Running", "conditions": ["x"], "summary": {"reason": {}}}, ("Running", "")),
    ],
)
def test_words_that_nobody_here_writes_make_no_series_of_their_own(status, kind):
    assert kind_of({"status": status}) == kind


def test_readiness_can_be_asked_of_the_metrics():
    operator, _ = listing()
    assert b"\nfinetune_ready 0.0\n" in metrics.text()
    operator.health.watching = True
    operator.health.last_relist = operator.health.clock()
    assert b"\nfinetune_ready 1.0\n" in metrics.text()
