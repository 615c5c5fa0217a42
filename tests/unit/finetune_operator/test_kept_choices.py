"""What preparation chose is in the ledger, from the write that says that it is over."""

from __future__ import annotations

import json
from datetime import timedelta

from harness.looks import NAMESPACE, Looks
from harness.played_runs import Run, trains_forever

JOB = ("finetunejobs", NAMESPACE, "bot")


def trains() -> Looks:
    """Return a job that trains, and whose preparation is gone."""
    looks = Looks(script=trains_forever)
    looks.create()
    looks.train()
    looks.turn()
    assert looks.status["attempt"] == 1
    assert "bot-prepare" not in looks.children()
    return looks


def preempted(looks: Looks) -> None:
    """Let an operator that remembers no pod meet the end of the first attempt, and go on."""
    preempts = Run(exit_code=143, step=30, checkpoint=30)
    looks.player.script = lambda _, attempt, __: preempts if attempt == 1 else Run(forever=True)
    looks.restart()
    for _ in range(12):
        looks.turn()
        looks.ahead += timedelta(seconds=20)
    looks.settle()


def told(looks: Looks, child: str) -> dict[str, object]:
    body = looks.api.objects[("jobs", NAMESPACE, child)]
    text = body["spec"]["template"]["metadata"]["annotations"]["finetune.dev/config"]
    found: dict[str, object] = json.loads(text)["choices"]
    return found


def test_every_attempt_is_told_the_same_whoever_starts_it() -> None:
    looks = trains()
    first = told(looks, "bot-1")
    preempted(looks)
    assert looks.status["attempt"] == 2
    assert looks.status["choices"] == first == told(looks, "bot-2")
    assert first["totalSteps"] == 60
    assert first["chosen"] == [], "the reasons are said once, with the others"


def test_what_is_known_of_the_data_is_said_after_nobody_remembers_the_preparation() -> None:
    looks = trains()
    said, chosen = looks.conditions()["Prepared"], looks.status["chosen"]
    assert said[:2] == ("True", "DataReady")
    assert "trained tokens" in said[2]
    dataset, version = (
        looks.status["dataset"],
        looks.api.objects[JOB]["metadata"]["resourceVersion"],
    )
    looks.restart()
    looks.settle()
    assert looks.api.objects[JOB]["metadata"]["resourceVersion"] == version, "nothing was written"
    preempted(looks)
    assert looks.conditions()["Prepared"] == said
    assert (looks.status["dataset"], looks.status["chosen"]) == (dataset, chosen)


def test_without_them_no_attempt_begins() -> None:
    looks = trains()
    del looks.api.objects[JOB]["status"]["choices"]
    preempted(looks)
    assert looks.conditions()["Recovering"] == (
        "True",
        "PreparationMissing",
        "status.choices, what preparation chose, is gone: create the job again",
    )
    assert "bot-2" not in looks.children()
