"""What a cluster refuses, does not answer or does not have, and two operators in one."""

from datetime import timedelta

import pytest

from finetune_api.reports import Progress
from finetune_operator.known_jobs import KnownJobs
from finetune_operator.kube import Invalid, Unavailable
from harness.looks import MAPS, NAMESPACE, Looks
from harness.memory_api import MemoryApi
from harness.operator_driver import JOBS
from harness.played_runs import Run, trains_forever

FINETUNE_JOBS = JOBS.format(namespace=NAMESPACE)


@pytest.mark.parametrize(
    ("message_code", "reason"), [(403, "CreationForbidden"), (422, "CreationRefused")]
)
def test_what_the_cluster_refuses_is_a_condition(message_code, reason):
    looks = Looks()
    looks.create()
    looks.kube.refuse = lambda method, path: (
        message_code if method == "POST" and path.endswith("/jobs") else None
    )

    assert looks.settle() == 30.0
    assert looks.conditions()["Prepared"] == ("False", reason, "refused by the test")
    looks.kube.refuse = lambda method, path: None
    assert looks.live()["outcome"] == "Succeeded"


def test_a_resolved_job_that_the_cluster_does_not_take_is_said():
    """It may be larger than a ConfigMap, or a policy has something against it."""
    looks = Looks()
    looks.create()
    looks.kube.refuse = lambda method, path: 422 if (method, path) == ("POST", MAPS) else None

    assert looks.look() == 30.0
    refusal = ("False", "CreationRefused", "refused by the test")
    assert looks.conditions()["Accepted"] == refusal
    looks.kube.refuse = lambda method, path: None
    assert looks.live()["outcome"] == "Succeeded"


@pytest.mark.parametrize("why", ["no status can hold it", "the cluster refuses it"])
def test_what_is_said_of_progress_cannot_stop_a_look(why):
    looks = Looks(script=trains_forever)
    looks.create(activeDeadlineSeconds=3600)
    looks.train()
    uid = looks.api.get(f"{FINETUNE_JOBS}/bot")["metadata"]["uid"]
    step = 10**30 if why == "no status can hold it" else 7
    said = Progress.model_construct(job_uid=uid, attempt=1, claim=1, step=step, total_steps=60)
    looks.puller._known[uid] = said

    def refuse(method, path):
        return 422 if path.endswith("/status") and looks.puller.known(uid) else None

    if why == "the cluster refuses it":
        looks.kube.refuse = refuse
    looks.ahead += timedelta(seconds=3700)
    looks.look()
    assert looks.status["stopping"] == "DeadlineExceeded"
    assert looks.puller.known(uid) is None


def test_a_look_that_fails_without_progress_is_made_once():
    looks = Looks()
    looks.create()
    asked = []

    def refuse(method, path):
        asked.append((method, path))
        return 422 if path.endswith("/status") else None

    looks.kube.refuse = refuse
    with pytest.raises(Invalid):
        looks.look()
    assert len([path for _, path in asked if path.endswith("/status")]) == 1


def test_no_answer_is_raised_and_nothing_is_lost():
    looks = Looks()
    looks.create()
    looks.kube.refuse = lambda method, path: 503 if method == "POST" else None
    with pytest.raises(Unavailable):
        looks.settle()
    looks.kube.refuse = lambda method, path: None

    assert looks.live()["outcome"] == "Succeeded"


def test_the_backend_is_what_the_cluster_has_and_stays():
    looks = Looks(api=MemoryApi(pytorch=True), script=lambda *_: Run())
    looks.create()
    looks.settle()

    assert looks.status["backend"] == "PyTorchJob"


def test_a_backend_that_is_missing_is_waited_for():
    looks = Looks()
    looks.create(backend="PyTorchJob")

    assert looks.settle() == 30.0
    assert looks.conditions()["Prepared"][1:] == (
        "BackendMissing",
        "this cluster has no PyTorchJob; install it, or leave spec.backend out",
    )


def test_two_operators_at_once_are_one():
    one = Looks(
        script=lambda stage, attempt, node: Run(
            exit_code=143 if attempt == 1 and stage == "train" else 0
        )
    )
    one.create()
    other = Looks.__new__(Looks)
    other.__dict__ |= one.__dict__
    other.restart()
    turn = 0

    class Both:
        """Looks with one and the other by turns. No watch tells either what the other wrote."""

        known = KnownJobs()

        async def look(self, key):
            nonlocal turn
            turn += 1
            return await (one_worker, other.worker)[turn % 2].look(key)

    one_worker = one.worker
    one.worker = Both()
    status = one.live()

    assert status["outcome"] == "Succeeded"
    assert (status["attempt"], status["preemptions"]) == (2, 1)
    assert one.player.made == [
        "bot-prepare-0-abcde",
        "bot-1-0-abcde",
        "bot-2-0-abcde",
        "bot-publish-0-abcde",
    ]
