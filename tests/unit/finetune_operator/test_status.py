"""Phases, conditions and columns over the life of a job."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from finetune_api.reports import Progress, TerminationReport
from finetune_api.status import JobStatus, Ledger, MemoryStatus
from finetune_operator.observed import ChildState, Live, Observed, ProcessEnd, Waiting
from finetune_operator.plan import account, plan
from finetune_operator.status import derive
from harness.simulation import START, make_choices, make_job, ref
from harness.stage_config import UID

JOB = make_job()


class Life:
    """A job whose status is derived at each look, as an executor does."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.status = JobStatus()
        self.now = START

    def look(self, *children: ChildState, **more: object) -> JobStatus:
        seen = replace(
            Observed(live=Live.of(JOB.spec), children=children, choices=make_choices()), **more
        )
        self.ledger = account(JOB, self.ledger, seen, self.now)
        step = plan(JOB, self.ledger, seen, self.now)
        self.status = derive(JOB, self.ledger, seen, step, self.now, self.status)
        self.now += timedelta(seconds=60)
        return self.status

    def condition(self, type_: str) -> tuple[str, str, str]:
        found = next(c for c in self.status.conditions if c.type == type_)
        return found.status, found.reason, found.message


def test_a_preparation_that_waits_to_be_tried_again_says_so() -> None:
    life = Life()
    life.look(ChildState("tiny-prepare", "p", running=1, ran=True))
    life.look(replace(ended("tiny-prepare", 1), uid="p"), choices=None)
    assert life.condition("Recovering")[:2] == ("True", "BackOff")
    assert life.status.phase == "Pending"
    assert life.status.summary.reason == "BackOff"


def ended(name: str, code: int, **more: object) -> ChildState:
    end = ProcessEnd(name=f"{name}-worker-0", at=START, exit_code=code, **more)  # type: ignore[arg-type]
    return ChildState(name=name, uid=name, ends=(end,), over=True, ran=True, active_since=START)


def test_what_its_own_user_stopped_is_no_restart() -> None:
    life = Life()
    life.look(ended("tiny-prepare", 0))
    suspended = Live.of(JOB.spec.model_copy(update={"suspend": True}))
    first = ChildState("tiny-1", "a1", running=1, ran=True, active_since=START)
    life.look(first, live=suspended)
    life.look(replace(ended("tiny-1", 143), uid="a1"), live=suspended)
    assert (life.status.phase, life.status.attempt) == ("Suspended", 2)
    assert life.status.summary.restarts is None
    second = ChildState("tiny-2", "a2", running=1, ran=True, active_since=START)
    assert life.look(second).summary.restarts is None
    life.look(replace(ended("tiny-2", 143, reason="DisruptionTarget"), uid="a2"))
    assert (life.status.attempt, life.status.suspensions) == (3, 1)
    assert life.status.summary.restarts == 1


def test_a_job_that_is_preempted_once() -> None:
    life = Life()
    assert life.look().phase == "Pending"
    assert (
        life.look(ChildState("tiny-prepare", "tiny-prepare", running=1, ran=True)).phase
        == "Preparing"
    )
    assert life.condition("Prepared")[:2] == ("False", "Preparing")
    assert life.look(ended("tiny-prepare", 0)).phase == "Starting"
    assert life.condition("Prepared")[:2] == ("True", "DataReady")

    queued = ChildState("tiny-1", "a1", waiting=Waiting("WaitingForRoom", "8 GPUs wanted, 2 free"))
    assert life.look(queued).phase == "Queued"
    assert life.condition("Queued") == ("True", "WaitingForRoom", "8 GPUs wanted, 2 free")
    assert life.status.summary.reason == "WaitingForRoom"

    running = ChildState("tiny-1", "a1", running=1, ran=True, active_since=START)
    seen = Progress(
        job_uid=UID, attempt=1, claim=1, step=27, total_steps=60, loss=1.0321, eta_seconds=1320
    )
    assert life.look(running, progress=seen).phase == "Running"
    summary = life.status.summary
    assert (summary.progress, summary.loss, summary.eta) == ("45%", "1.032", "22m")
    assert summary.restarts is None
    assert life.condition("Queued")[0] == "False"

    saved = seen.model_copy(update={"step": 30, "checkpoint": ref(1, 30)})
    gone = ended("tiny-1", 143, reason="DisruptionTarget", message="for default/urgent")
    status = life.look(replace(gone, uid="a1"), progress=saved)
    assert status.phase == "Recovering"
    assert (status.summary.reason, status.summary.restarts) == ("BackOff", 1)
    assert life.condition("Running") == (
        "False",
        "Preempted",
        "attempt 1 stopped at step 30: the processes were told to make room; for default/urgent;"
        " checkpoint 30 is saved and verified",
    )
    assert life.condition("Recovering") == (
        "True",
        "BackOff",
        "attempt 2 will resume from step 30",
    )

    assert life.look(ChildState("tiny-2", "a2", running=1, ran=True, active_since=START)).phase == (
        "Running"
    )
    assert life.condition("Recovering") == (
        "False",
        "Recovered",
        "attempt 2 resumed from step 30",
    )
    assert life.status.summary.progress == "45%"
    assert life.look(replace(ended("tiny-2", 0), uid="a2")).phase == "Publishing"
    assert life.status.summary.progress == "100%"  # though 45% was heard last
    assert life.look(ended("tiny-publish", 0)).phase == "Succeeded"
    for type_ in ("Succeeded", "Finished"):
        assert life.condition(type_)[0] == "True"
    assert life.condition("Running")[:2] == ("False", "Trained")


def test_a_job_that_has_trained_shows_its_last_step_and_not_what_was_heard_before() -> None:
    life = Life()
    life.look(ended("tiny-prepare", 0))
    running = ChildState("tiny-1", "a1", running=2, ran=True, active_since=START)
    seen = Progress(
        job_uid=UID, attempt=1, claim=1, step=53, total_steps=60, epoch=5.3, loss=1.2, eta_seconds=7
    )
    life.look(running, progress=seen.model_copy(update={"tokens_per_second": 900}))
    assert life.status.progress.step == 53
    said = TerminationReport(
        stage="train", job_uid=UID, attempt=1, claim=1, exit_code=0, step=60, loss=0.875
    )
    ends = tuple(
        ProcessEnd(name=f"tiny-1-worker-{node}", at=START, exit_code=0, report=report)
        for node, report in enumerate((said, said.model_copy(update={"node": 1, "loss": None})))
    )
    done = replace(running, running=0, ends=ends, over=True)
    for status in (
        life.look(done, progress=seen),
        life.look(done, ChildState("tiny-publish", "p", running=1, ran=True), progress=seen),
        # Its pods are removed, and what was heard before is still known.
        life.look(ended("tiny-publish", 0), progress=seen),
    ):
        progress = status.progress
        assert (progress.step, progress.total_steps, progress.epoch) == (60, 60, 6.0)
        assert (progress.loss, progress.eta_seconds) == (0.875, None)
        assert (status.summary.progress, status.summary.loss) == ("100%", "0.875")


def test_a_condition_keeps_the_time_of_its_last_change() -> None:
    life = Life()
    life.look()
    first = life.status.conditions[0]
    life.look(ChildState("tiny-prepare", "tiny-prepare", running=1, ran=True))
    assert life.status.conditions[0].last_transition_time == first.last_transition_time
    times = {c.type: c.last_transition_time for c in life.status.conditions}
    assert times["Prepared"] == "2026-01-01T00:00:00Z"
    life.look(ended("tiny-prepare", 0))
    assert {c.type: c.last_transition_time for c in life.status.conditions}["Prepared"] == (
        "2026-01-01T00:02:00Z"
    )


def test_nothing_changes_where_nothing_happened() -> None:
    life = Life()
    running = ChildState("tiny-prepare", "tiny-prepare", running=1, ran=True)
    life.look()
    once = life.look(running)
    assert life.look(running) == once


def test_a_failed_job_says_why_and_what_to_do() -> None:
    life = Life()
    life.look()
    status = life.look(ended("tiny-prepare", 11), choices=None)
    assert (status.phase, status.summary.reason) == ("Failed", "InvalidData")
    assert life.condition("Failed") == (
        "True",
        "InvalidData",
        "the training data cannot be used; exit code 11 [invalid-data] fix: correct the rows that"
        " the preparation's report names",
    )


def test_a_halved_micro_batch_is_said() -> None:
    life = Life()
    life.look()
    life.look(ended("tiny-prepare", 0))
    life.look(ended("tiny-1", 12))
    row = next(row for row in life.status.chosen if row.field == "training.microBatchSize")
    assert row.value == "2"
    assert row.reason == (
        "was 4; halved after memory ran out (1 of 2 times), the global batch stays 8"
    )


def test_the_most_memory_that_was_seen_is_kept() -> None:
    """Progress is kept by a process, and what was seen before it began is in status alone."""
    life = Life()
    life.look(ended("tiny-prepare", 0))
    first = ChildState("tiny-1", "a1", running=1, ran=True, active_since=START)
    seen = Progress(job_uid=UID, attempt=1, claim=1, step=7, peak_memory_bytes=58 * 2**30)
    life.look(first, progress=seen)
    assert life.look(first).memory == MemoryStatus(verdict="Unknown", observed_bytes=58 * 2**30)
    less = seen.model_copy(update={"peak_memory_bytes": 3 * 2**30})
    memory = life.look(first, progress=less).memory
    assert memory is not None
    assert memory.observed_bytes == 58 * 2**30


def test_a_job_is_not_suspended_while_processes_of_an_earlier_attempt_may_run() -> None:
    life = Life()
    life.look(ended("tiny-prepare", 0))
    hung = ChildState("tiny-1", "a1", running=1, ran=True, active_since=START, stopped_at=START)
    life.look(hung)
    life.now += timedelta(seconds=600)
    suspended = replace(Live.of(JOB.spec), suspend=True)
    life.look(hung, live=suspended)
    assert life.status.attempt == 2
    assert life.status.phase == "Recovering"
    assert life.condition("Suspended")[:2] == ("False", "Suspending")
    life.look(replace(hung, running=0, over=True), live=suspended)
    assert life.condition("Suspended")[0] == "True"


def test_the_largest_numbers_that_a_pod_may_say_stop_nothing() -> None:
    life = Life()
    life.look(ended("tiny-prepare", 0))
    run = ChildState("tiny-1", "a1", running=1, ran=True, active_since=START)
    most = 2**53 - 1
    said = Progress(
        job_uid=UID,
        attempt=1,
        claim=1,
        step=most,
        total_steps=1,
        eta_seconds=float(most),
        loss=float(most),
        peak_memory_bytes=most,
    )
    summary = life.look(run, progress=said).summary
    assert (summary.progress, summary.eta) == ("100%", "104249991374d7h")
    assert summary.loss == "9007199254740991.000"
    over = Live.of(JOB.spec.model_copy(update={"active_deadline_seconds": 60}))
    assert life.look(run, progress=said, live=over).stopping == "DeadlineExceeded"
