"""Attempts that were ended from outside before their first step: no failure, and yet an end to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.checkpoint import Claim, Rejected
from finetune_api.job.lifecycle import Recovery
from finetune_api.reports import Goodput, Progress, TerminationReport
from finetune_api.status import Child, Ledger
from finetune_operator.observed import (
    ChildState,
    EndReason,
    Live,
    Observed,
    ProcessEnd,
    Waiting,
)
from finetune_operator.plan import account
from harness.looks import Looks
from harness.played_runs import Run
from harness.simulation import START, make_choices, make_job, ref
from harness.stage_config import UID

JOB = make_job({"recovery": {"maxFailures": 100}})
PREPARED = Ledger(attempt=1, child=Child(kind="Process", name="tiny-1", uid="a1"), prepared=True)


def report(step: int = 0, **more: Any) -> TerminationReport:
    return TerminationReport(stage="train", job_uid=UID, exit_code=143, step=step, **more)


def progress(step: int = 0, attempt: int = 1, **more: Any) -> Progress:
    values = {"job_uid": UID, "claim": 1, "step": step, "total_steps": 60}
    return Progress(**(values | more), attempt=attempt)


@dataclass
class Job:
    """Ends one attempt after the other, a minute after each began."""

    ledger: Ledger = PREPARED
    now: datetime = START
    waits: list[float] = field(default_factory=list)
    live: Live = field(default_factory=lambda: Live.of(JOB.spec))

    def end(
        self,
        code: int | None = 143,
        told: TerminationReport | None = None,
        heard: Progress | None = None,
        *,
        reason: EndReason | None = None,
        claim: Claim | None = None,
    ) -> None:
        """End the process of the attempt that runs; one that was signalled was made to leave."""
        self.now += timedelta(seconds=60)
        reason = "DisruptionTarget" if code == 143 else reason
        end = ProcessEnd("w", self.now, code, reason, report=told)
        self.look(replace(self.child, ran=True, ends=(end,)), heard, claim)

    def stop(self) -> None:
        """End an attempt on request."""
        self.ledger = self.ledger.model_copy(update={"stopping": "Stopped"})
        self.look(self.child)

    def wait(self, waited: str) -> None:
        """Let an attempt wait until it is told to end; what has ended waits for nothing."""
        began, self.now = self.now, self.now + timedelta(minutes=30)
        self.look(replace(self.child, over=False, active_since=began, waiting=Waiting(waited)))
        assert self.ledger.stopping == "StartTimeout"
        self.look(self.child)

    @property
    def child(self) -> ChildState:
        """What the ledger names, ended."""
        assert self.ledger.child is not None
        return ChildState(self.ledger.child.name, "a1", over=True)

    def look(
        self,
        state: ChildState | None,
        heard: Progress | None = None,
        claim: Claim | None = None,
    ) -> None:
        """Account for what was seen of the child, and let the next attempt have one."""
        children = () if state is None else (state,)
        seen = Observed(
            live=self.live, children=children, choices=make_choices(), progress=heard, claim=claim
        )
        ledger = account(JOB, self.ledger, seen, self.now)
        if ledger.not_before is not None and ledger.outcome is None:
            begins = datetime.fromisoformat(ledger.not_before)
            self.waits.append((begins - self.now).total_seconds())
            self.now = begins
        assert ledger.child is not None
        child = ledger.child.model_copy(update={"uid": "a1"})
        self.ledger = ledger.model_copy(update={"child": child})

    def counted(self) -> tuple[str | None, int, int]:
        """Outcome, attempts without progress, and those of them that never trained."""
        ledger = self.ledger
        return ledger.outcome, ledger.attempts_without_progress, ledger.interrupted_starts


def test_a_rolling_drain_while_the_model_is_loaded_is_no_failure() -> None:
    """Told to end, evicted, its node lost, its pod deleted, its child gone: it goes on."""
    job = Job()
    job.end(143, report())
    job.end(143, report(message="asked to stop"), heard=progress(attempt=2, phase="loading"))
    job.end(None, reason="NodeLost")
    job.end(137, reason="Evicted")
    job.look(None)
    assert job.counted() == (None, 5, 5)
    assert (job.ledger.attempt, job.ledger.preemptions, job.ledger.failures) == (6, 5, 0)


def test_waits_grow_to_ten_minutes_with_such_starts_in_a_row() -> None:
    job = Job()
    for _ in range(9):
        job.end(143, report())
    assert len(job.waits) == 9
    for wait, shortest in zip(job.waits, (10, 20, 40, 80, 160, 320, 600, 600, 600), strict=True):
        assert shortest <= wait <= min(shortest * 1.25, 600) + 1  # the ledger keeps whole seconds


def test_the_thirtieth_ends_the_job_after_four_hours_of_waiting() -> None:
    job = Job()
    for _ in range(29):
        job.end(143, report())
    assert job.counted() == (None, 29, 29)
    # 10 + 20 + 40 + 80 + 160 + 320 = 630, and 23 times 600; a quarter of the first six at most more
    assert 14_430 <= sum(job.waits) <= 14_430 + 158 + 29
    job.end(None, reason="Evicted")
    assert job.counted() == ("Failed", 30, 30)
    failure = job.ledger.last_failure
    assert failure is not None
    assert (failure.class_, failure.code) == ("NoProgress", "interrupted-starts")
    assert failure.message == (
        "30 attempts were ended from outside before their first step, and none left a newer"
        " verified checkpoint; the last: the processes were told to make room"
    )
    assert failure.fix == (
        "look at what takes the processes away while the model is loaded (a broken node, a drain,"
        " jobs of higher priority); once it is mended or over raise recovery.retryGeneration"
    )
    assert (job.ledger.attempt, job.ledger.preemptions) == (30, 30)


STEP_1 = {
    "its report names a step": (report(1), None),
    "its report has seconds of a step": (report(goodput=Goodput(productive=2.5)), None),
    "its progress names a step": (None, progress(1)),
    "its progress has seconds of a step": (None, progress(goodput=Goodput(productive=2.5))),
}


@pytest.mark.parametrize("known", STEP_1.values(), ids=STEP_1)
def test_an_attempt_that_has_trained_counts_as_ever(known: Any) -> None:
    told, heard = known
    job = Job()
    job.end(143, told, heard)
    assert job.counted() == (None, 1, 0)


STEP_0 = {
    "nothing was heard": (None, None),
    "it was loading": (report(), progress(phase="loading", goodput=Goodput(starting=400.0))),
    "its first step was not finished": (
        report(goodput=Goodput(starting=90.0, lost=7.5)),
        progress(phase="training", goodput=Goodput(lost=7.5)),
    ),
    "another attempt got further": (None, progress(30, attempt=7)),
    "another job got further": (None, progress(30, job_uid="another")),
}


@pytest.mark.parametrize("known", STEP_0.values(), ids=STEP_0)
def test_an_attempt_of_which_no_step_is_known_was_only_starting(known: Any) -> None:
    told, heard = known
    job = Job()
    job.end(143, told, heard)
    assert job.counted() == (None, 1, 1)


def test_the_step_that_it_began_with_is_none_of_its_own() -> None:
    job = Job()
    job.end(143, report(20, checkpoint=ref(1, 20)))
    assert job.counted() == (None, 0, 0)
    for _ in range(4):
        job.end(143, report(20, checkpoint=ref(1, 20)))
    assert job.counted() == (None, 4, 4)
    job.end(143, report(21, checkpoint=ref(1, 20)))
    assert job.counted() == (None, 5, 4)
    job.end(143, report(30, checkpoint=ref(2, 30)))
    assert job.counted() == (None, 0, 0)


def test_what_it_really_began_with_is_what_counts() -> None:
    """Checkpoint 20 was damaged: the attempt began with 10 and came to 15, which are five steps."""
    job = Job()
    job.end(143, report(20, checkpoint=ref(1, 20)))
    damaged = Rejected(path="checkpoints/1/step-20", step=20, reason="digest differs")
    claim = Claim(
        sequence=2,
        job_uid=UID,
        attempt=2,
        pod_uid="p",
        resumes_from=ref(1, 10),
        rejected=(damaged,),
        time="",
    )
    job.end(143, report(15), claim=claim)
    assert job.counted() == (None, 1, 0)


def test_three_that_trained_end_the_job_whatever_lies_between() -> None:
    job = Job()
    for told in (report(3), report(), report(), report(4), report()):
        job.end(143, told)
    assert job.counted() == (None, 5, 3)
    job.end(143, report(2))
    assert job.counted() == ("Failed", 6, 3)
    failure = job.ledger.last_failure
    assert failure is not None
    assert (failure.class_, failure.code) == ("NoProgress", "no-progress")
    assert failure.message == (
        "3 attempts ended, and none left a newer verified checkpoint;"
        " the last: the processes were told to make room"
    )


@pytest.mark.parametrize("code", [1, 20, 137])
def test_what_fails_by_itself_before_its_first_step_counts_as_ever(code: int) -> None:
    job = Job()
    job.end(code)
    job.end(code)
    assert job.counted() == (None, 2, 0)
    job.end(code)
    assert job.counted() == ("Failed", 3, 0)
    assert job.ledger.last_failure is not None
    assert job.ledger.last_failure.class_ == "NoProgress"


def test_an_attempt_that_could_not_start_in_time_counts_as_ever() -> None:
    job = Job()
    for _ in range(3):
        job.wait("ImagePullFailed")
    assert job.counted() == ("Failed", 3, 0)


def test_waiting_for_room_and_stopping_change_neither_count() -> None:
    job = Job()
    job.end(143, report())
    job.wait("WaitingForRoom")
    job.stop()
    assert job.counted() == (None, 1, 1)
    assert job.ledger.attempt == 4


def test_what_was_saved_when_it_was_stopped_begins_both_counts_anew() -> None:
    """Two that came to nothing, one that saved and was stopped, and one that came to nothing."""
    job = Job()
    job.end(1, report())
    job.end(1, report())
    assert job.counted() == (None, 2, 0)
    job.ledger = job.ledger.model_copy(update={"stopping": "Stopped"})
    job.end(143, report(30, checkpoint=ref(3, 30)))
    assert job.counted() == (None, 0, 0)
    job.end(1, report())
    assert job.counted() == (None, 1, 0)


def test_a_retry_begins_both_counts_anew() -> None:
    job = Job(
        PREPARED.model_copy(update={"attempts_without_progress": 29, "interrupted_starts": 29})
    )
    job.end(143, report())
    assert job.counted() == ("Failed", 30, 30)
    job.live = replace(job.live, recovery=Recovery(max_failures=100, retry_generation=1))
    job.look(None)
    assert job.counted() == (None, 0, 0)


def test_training_that_is_done_leaves_both_counts_behind() -> None:
    job = Job()
    job.end(143, report())
    job.end(0, report(60))
    assert job.ledger.trained
    assert job.counted() == (None, 0, 0)


def test_where_the_new_count_is_dropped_jobs_fail_sooner_and_not_later() -> None:
    """Definitions that are older than the operator: what they do not know is never read back."""
    job = Job()
    for _ in range(4):
        assert job.ledger.outcome is None
        job.end(143, report())
        job.ledger = job.ledger.model_copy(update={"interrupted_starts": 0})
    assert job.ledger.outcome == "Failed"
    assert job.ledger.attempt == 4


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.sampled_from([1, 137, 143, None]).flatmap(
            lambda code: st.tuples(st.just(code), st.integers(0, 2))
        ),
        min_size=40,
        max_size=40,
    )
)
def test_no_order_of_ends_without_a_checkpoint_goes_on_for_ever(
    ends: list[tuple[int | None, int]],
) -> None:
    job = Job()
    for code, step in ends:
        job.end(code, report(step))
        _, without, interrupted = job.counted()
        assert 0 <= interrupted <= without
        if job.ledger.outcome is not None:
            break
    assert job.ledger.outcome == "Failed"
    assert job.ledger.attempt <= 32  # two that count, and the thirtieth that does not


def test_the_operator_goes_on_after_four_pods_that_never_trained() -> None:
    def script(stage: str, attempt: int, node: int) -> Run:
        del node
        starting = Run(exit_code=143, step=0, checkpoint=None)
        return starting if stage == "train" and attempt <= 4 else Run()

    looks = Looks(script=script)
    looks.create()
    seen = set()
    for _ in range(200):
        looks.turn()
        status = looks.status
        seen.add((status.get("attemptsWithoutProgress", 0), status.get("interruptedStarts", 0)))
        if status.get("outcome"):
            break
        looks.ahead += timedelta(seconds=5)
    assert (status["outcome"], status["attempt"], status["preemptions"]) == ("Succeeded", 5, 4)
    assert seen == {(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)}
    assert looks.player.most_alive == {"bot": 1}


def test_a_damaged_newest_checkpoint_does_not_hide_that_nothing_is_saved() -> None:
    """Step 100 is damaged; each attempt begins at 90, says so, trains on and vanishes.

    Of the first it is not known that it began with anything.
    """
    job = Job(PREPARED.model_copy(update={"checkpoint": ref(1, 100), "attempt": 1}))
    for attempt in (1, 2, 3, 4):
        start = Claim(
            sequence=attempt + 1,
            job_uid=UID,
            attempt=attempt,
            pod_uid="",
            resumes_from=ref(1, 90),
            time="",
        )
        told = progress(93, attempt, claim=attempt + 1, resumed_from=ref(1, 90))
        job.end(None, reason="NodeLost", heard=told, claim=start)
    assert job.ledger.checkpoint == ref(1, 90)
    assert job.counted() == ("Failed", 3, 0)


def test_what_an_attempt_has_saved_itself_is_not_passed_over() -> None:
    """It began with step 90 of the first claim, and saved step 95 under its own, the second."""
    job = Job(PREPARED.model_copy(update={"checkpoint": ref(1, 90)}))
    start = Claim(sequence=2, job_uid=UID, attempt=1, pod_uid="", resumes_from=ref(1, 90), time="")
    told = progress(96, claim=2, resumed_from=ref(1, 90), checkpoint=ref(2, 95))
    job.end(None, reason="NodeLost", heard=told, claim=start)
    assert job.ledger.checkpoint == ref(2, 95)
    assert job.counted() == (None, 0, 0)
