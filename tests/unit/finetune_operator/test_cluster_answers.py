"""What a cluster refuses, does not answer or does not have, and two operators in one."""

import pytest

from finetune_operator.known_jobs import KnownJobs
from finetune_operator.kube import Unavailable
from harness.looks import Looks
from harness.memory_api import MemoryApi
from harness.played_runs import Run


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
