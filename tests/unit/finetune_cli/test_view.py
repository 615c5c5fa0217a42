"""What a terminal shows of a job of a cluster, and which changes are worth a line."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from finetune_cli.cluster.follow import Shown
from finetune_cli.cluster.jobs import ClusterJob, parse
from finetune_cli.view import PlainView, RichView
from harness.written_status import THEN, condition


def job(*conditions: dict[str, Any], **status: Any) -> ClusterJob:
    metadata = {"name": "bot", "namespace": "team", "uid": "u"}
    return parse({"metadata": metadata, "status": {"conditions": list(conditions), **status}})


RUNNING = job(
    condition("Accepted", "True", "Accepted"),
    condition("Running", "True", "Training", "attempt 2 is running"),
    condition("Recovering", "False", "Recovered", "attempt 2 resumed from step 30"),
    phase="Running",
    attempt=2,
    failures=0,
    preemptions=1,
    progress={"step": 45, "totalSteps": 60, "loss": 0.84, "etaSeconds": 80},
    checkpoint={
        "step": 40,
        "path": "checkpoints/2/step-40",
        "digest": "sha256:" + "9f" * 32,
        "time": THEN,
        "worldSize": 1,
    },
)


def test_a_terminal_shows_phase_progress_checkpoint_and_conditions() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30, no_color=True)
    view = RichView(console)
    try:
        Shown(view).show(RUNNING)
        shown = Console(file=io.StringIO(), width=100)
        shown.print(view._live.renderable)
    finally:
        view.close()
    lines = [line.rstrip() for line in shown.file.getvalue().splitlines()]
    assert lines[0] == "bot  Running  attempt 2, 1 interrupted, checkpoint 40 verified"
    assert lines[1].startswith("training ━")
    assert lines[1].endswith(" 45/60")
    assert lines[2] == "step 45/60  loss 0.840  ETA 1m20s  checkpoint 40"
    assert [line.split() for line in lines[3:]] == [
        ["Accepted", "True", "Accepted"],
        ["Running", "True", "Training", "attempt", "2", "is", "running"],
        ["Recovering", "False", "Recovered", "attempt", "2", "resumed", "from", "step", "30"],
    ]


def told(*jobs: ClusterJob) -> list[str]:
    lines: list[str] = []
    shown = Shown(PlainView(lines.append, quiet=0))
    for one in jobs:
        shown.show(one)
    return lines


def test_what_a_job_waits_for_is_told_once_a_reason() -> None:
    room = condition("Running", "False", "WaitingForRoom", "8 free on 2 nodes")
    less = condition("Running", "False", "WaitingForRoom", "7 free on 2 nodes")
    image = condition("Running", "False", "ImagePullFailed", "not found")
    starting = condition("Running", "False", "Starting", "attempt 1 is starting")
    jobs = [
        job(one, phase="Starting", attempt=1) for one in (starting, room, less, image, starting)
    ]
    assert told(*jobs) == [
        "waiting    WaitingForRoom: 8 free on 2 nodes",
        "waiting    ImagePullFailed: not found",
    ]


def test_a_job_that_is_not_accepted_and_one_that_is_suspended_say_why() -> None:
    refused = condition("Accepted", "False", "ProfileNotFound", "no profile moon; use: small")
    assert told(job(refused, phase="Pending")) == [
        "refused    ProfileNotFound: no profile moon; use: small"
    ]
    suspended = condition("Suspended", "True", "Suspended", "checkpoint 40 is kept")
    assert told(job(suspended, phase="Suspended", attempt=1)) == [
        "suspended  checkpoint 40 is kept"
    ]


def test_the_progress_of_an_attempt_that_is_over_is_not_told_of_the_next() -> None:
    def at(attempt: int, step: int, phase: str = "Running") -> ClusterJob:
        progress = {"step": step, "totalSteps": 60}
        return job(phase=phase, attempt=attempt, progress=progress)

    assert told(at(1, 33), at(1, 35, "Recovering"), at(2, 35), at(2, 35), at(2, 31)) == [
        "training   attempt 1 from step 0",
        "  step 33/60",
        "training   attempt 2 from step 0",
        "  step 31/60",
    ]
