"""A job's life, look by look, against objects in memory; and killed at each of its writes."""

from datetime import timedelta

import pytest

from harness.looks import Looks
from harness.played_runs import Run

TROUBLE = {
    1: Run(exit_code=143, step=30, checkpoint=30),
    2: Run(exit_code=20, step=45, checkpoint=40),
}


def troubled(stage, attempt, node):
    """Preempted at step 30, communication lost at 45, then done."""
    del node
    return TROUBLE.get(attempt, Run()) if stage == "train" else Run()


def essence(looks):
    """What must not depend on how often the operator was killed."""
    status = looks.status
    return {
        "outcome": status["outcome"],
        "attempt": status["attempt"],
        "failures": status["failures"],
        "preemptions": status["preemptions"],
        "resumes": [
            (r["attempt"], r["cause"], r["fromStep"], r["lostSteps"]) for r in status["resumes"]
        ],
        "last": status["lastFailure"]["class"],
        "checkpoint": status["checkpoint"]["path"],
        "output": status["output"]["uri"],
        "conditions": {kind: (s, r) for kind, (s, r, _) in looks.conditions().items()},
        "pods": looks.player.made,
        "alive": looks.player.most_alive,
    }


EXPECTED = {
    "outcome": "Succeeded",
    "attempt": 3,
    "failures": 1,
    "preemptions": 1,
    "resumes": [(2, "Preempted", 30, 0), (3, "CommunicationLost", 40, 5)],
    "last": "CommunicationLost",
    "checkpoint": "checkpoints/3/step-60",
    "output": "pvc://bot-workspace/bot-00000002/output",
    "conditions": {
        "Accepted": ("True", "Accepted"),
        "Prepared": ("True", "DataReady"),
        "Running": ("False", "Trained"),
        "Recovering": ("False", "NotRecovering"),
        "Succeeded": ("True", "Published"),
        "Finished": ("True", "Succeeded"),
    },
    "pods": [
        "bot-prepare-0-abcde",
        "bot-1-0-abcde",
        "bot-2-0-abcde",
        "bot-3-0-abcde",
        "bot-publish-0-abcde",
    ],
    "alive": {"bot": 1},
}


def test_an_undisturbed_life():
    looks = Looks()
    looks.create()
    status = looks.live()

    assert status["outcome"] == "Succeeded"
    assert looks.player.made == ["bot-prepare-0-abcde", "bot-1-0-abcde", "bot-publish-0-abcde"]
    assert status["attempt"] == 1
    assert "lastFailure" not in status
    assert looks.conditions()["Prepared"] == (
        "True",
        "DataReady",
        "88 rows, 310 trained tokens (31%), 2 dropped",
    )
    assert status["dataset"]["trainedTokens"] == 310


def test_a_troubled_life():
    looks = Looks(script=troubled)
    looks.create()
    looks.live()

    assert essence(looks) == EXPECTED


def writes_of_a_life():
    looks = Looks(script=troubled)
    looks.create()
    looks.live()
    return looks.kube.count


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_each_write_of_a_life_it_ends_the_same(when):
    total = writes_of_a_life()
    assert total > 40
    for number in range(1, total + 1):
        looks = Looks(script=troubled)
        looks.create()
        looks.kube.crash_at = (when, number)
        looks.live()
        assert essence(looks) == EXPECTED, f"killed {when} write {number}"


def test_killed_at_every_write_of_one_life_it_ends_the_same():
    looks = Looks(script=troubled)
    looks.create()
    plain = looks.restart
    turns = iter(["before", "after"] * 1000)

    def restart():
        plain()
        looks.kube.crash_at = (next(turns), 1)

    # Before a write nothing has happened, and the next worker comes to the same write.
    looks.restart = restart
    restart()
    looks.live(limit=400)

    assert essence(looks) == EXPECTED


def test_at_rest_nothing_is_written():
    looks = Looks(script=lambda stage, *_: Run(forever=stage == "train"))
    looks.create()
    looks.train()
    writes = len(looks.api.writes)
    for _ in range(20):
        looks.ahead += timedelta(seconds=60)
        assert looks.look() is None, "only the list of all jobs comes to it"
    looks.restart()
    looks.settle()

    assert len(looks.api.writes) == writes


def test_after_its_end_nothing_is_written():
    looks = Looks()
    looks.create()
    looks.live()
    looks.settle()
    writes = len(looks.api.writes)
    looks.ahead += timedelta(days=100)
    looks.restart()

    assert looks.settle() is None
    assert len(looks.api.writes) == writes
    assert looks.children() == ["bot-publish"]
