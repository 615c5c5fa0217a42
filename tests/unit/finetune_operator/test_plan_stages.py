"""Stops, deadlines, stragglers, retries and suspension, one look after the other."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from finetune_api.checkpoint import Claim, Rejected
from finetune_api.job.lifecycle import Recovery
from finetune_api.reports import Progress
from finetune_api.status import Child, Ledger
from finetune_operator.observed import (
    ChildState,
    Live,
    Observed,
    ProcessEnd,
    Waiting,
    WorkspaceState,
)
from finetune_operator.plan import account, plan
from finetune_operator.plan.situation import text_of
from finetune_operator.steps import (
    Finish,
    StartAttempt,
    StartPrepare,
    Step,
    Stop,
    Wait,
)
from harness.simulation import START, make_choices, make_job, ref
from harness.stage_config import UID

JOB = make_job()  # a grace period of 120 s
PREPARED = Ledger(
    attempt=1,
    child={"kind": "Process", "name": "tiny-1", "uid": "a1"},  # type: ignore[arg-type]
    prepared=True,
)
RUNNING = ChildState("tiny-1", "a1", running=1, ran=True, active_since=START)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def look(ledger: Ledger, seconds: float, *children: ChildState, **more: Any) -> tuple[Ledger, Step]:
    """One look of an executor, some seconds after the start."""
    values = {"live": Live.of(JOB.spec), "choices": make_choices(), **more}
    seen = Observed(children=children, **values)
    ledger = account(JOB, ledger, seen, at(seconds))
    return ledger, plan(JOB, ledger, seen, at(seconds))


def over(child: ChildState, code: int | None, seconds: float, **more: Any) -> ChildState:
    ends = () if code is None else (ProcessEnd("w", at(seconds), code, **more),)
    return replace(child, running=0, over=True, ends=ends)


def test_a_new_job_names_its_preparation_before_it_starts() -> None:
    ledger, step = look(Ledger(), 0, choices=None)
    assert isinstance(step, StartPrepare)
    assert step.child == ledger.child
    assert (step.child.name, step.child.uid) == ("tiny-prepare", "")


def test_a_child_that_was_made_before_the_status_was_written_is_not_made_again() -> None:
    ledger, _ = look(Ledger(), 0, choices=None)
    ledger, step = look(ledger, 1, ChildState("tiny-prepare", "p1", running=1), choices=None)
    assert ledger.child is not None
    assert ledger.child.uid == "p1"
    assert isinstance(step, Wait)


def test_suspend_stops_and_counts_as_nothing() -> None:
    live = replace(Live.of(JOB.spec), suspend=True)
    ledger, step = look(PREPARED, 60, RUNNING, live=live)
    assert ledger.stopping == "Stopped"
    assert step == Stop("tiny-1", "Stopped", "stopped on request", None)
    saved = Progress(job_uid=UID, attempt=1, claim=1, step=30, checkpoint=ref(1, 30))
    ended = replace(over(RUNNING, 143, 90), stopped_at=at(60))
    ledger, step = look(ledger, 91, ended, live=live, progress=saved)
    assert (ledger.attempt, ledger.failures, ledger.preemptions) == (2, 0, 0)
    assert ledger.last_failure is None
    assert ledger.stopping is None
    assert step == Wait(None, "Suspended", "Suspended", "checkpoint 30 is kept")
    ledger, step = look(ledger, 4000, progress=saved)
    assert isinstance(step, StartAttempt)
    assert (step.attempt.number, step.attempt.known) == (2, ref(1, 30))


def test_a_job_that_ends_while_it_is_being_stopped_has_ended() -> None:
    live = replace(Live.of(JOB.spec), suspend=True)
    ledger, _ = look(PREPARED, 60, RUNNING, live=live)
    ledger, _ = look(ledger, 61, over(RUNNING, 0, 61), live=live)
    assert ledger.trained
    ledger, _ = look(PREPARED, 60, RUNNING, live=live)
    ledger, step = look(ledger, 61, over(RUNNING, 13, 61), live=live)
    assert ledger.last_failure is not None
    assert ledger.last_failure.class_ == "NonFiniteLoss"
    assert isinstance(step, Finish)


def test_a_suspended_new_job_starts_nothing() -> None:
    live = replace(Live.of(JOB.spec), suspend=True)
    _, step = look(Ledger(), 0, choices=None, live=live)
    assert step == Wait(None, "Suspended", "Suspended", "nothing was saved yet")


def test_the_deadline_counts_all_attempts_and_not_the_queue() -> None:
    live = replace(Live.of(JOB.spec), active_deadline_seconds=1000)
    spent = PREPARED.model_copy(update={"active_seconds": 400.0})
    queued = replace(RUNNING, ran=False, running=0, active_since=None)
    ledger, step = look(spent, 5000, queued, live=live)
    assert step == Wait(None, "Queued", "Queued", "waiting to be admitted")
    began = replace(RUNNING, active_since=at(5000))
    ledger, step = look(spent, 5500, began, live=live)
    assert step == Wait(at(5600), "Running", "Training", "attempt 1 is running")
    ledger, step = look(ledger, 5600, began, live=live)
    assert isinstance(step, Stop)
    assert step.reason == "DeadlineExceeded"
    ledger, step = look(ledger, 5630, over(began, 143, 5630), live=live)
    assert (ledger.outcome, ledger.active_seconds) == ("Failed", 1030.0)
    assert isinstance(step, Finish)
    assert step.failure is not None
    assert step.failure.class_ == "DeadlineExceeded"
    assert "raise activeDeadlineSeconds" in step.failure.fix


def test_an_attempt_that_does_not_start_in_time_says_why() -> None:
    waiting = Waiting("ImagePullFailed", "registry.example/trainer: not found")
    stuck = ChildState("tiny-1", "a1", active_since=START, waiting=waiting)
    _, step = look(PREPARED, 60, stuck)
    assert step == Wait(at(1800), "Running", "ImagePullFailed", waiting.message)
    ledger, step = look(PREPARED, 1800, stuck)
    assert isinstance(step, Stop)
    assert step.reason == "StartTimeout"
    ledger, step = look(ledger, 1830, replace(stuck, over=True))
    assert (ledger.attempt, ledger.failures, ledger.attempts_without_progress) == (2, 0, 1)
    assert ledger.last_failure is not None
    assert ledger.last_failure.message == (
        "not all processes ran within 30m; ImagePullFailed: registry.example/trainer: not found"
    )
    assert isinstance(step, Wait)
    assert step.reason == "BackOff"


def test_an_attempt_that_saved_nothing_backs_off_by_those_in_a_row_that_did_not() -> None:
    """Five preemptions before it, each of which had saved something, do not make it wait longer."""
    ledger = PREPARED.model_copy(update={"preemptions": 5})
    waits = []
    for number, shortest in ((1, 10), (2, 20)):
        child = replace(RUNNING, name=f"tiny-{number}", uid=f"a{number}")
        ledger = ledger.model_copy(
            update={"child": ledger.child.model_copy(update={"uid": child.uid})}
        )
        ledger, step = look(ledger, 100 * number, over(child, 143, 100 * number))
        assert isinstance(step, Wait)
        assert step.until is not None
        waits.append((step.until - at(100 * number)).total_seconds())
        assert shortest <= waits[-1] <= shortest * 1.25 + 1  # the ledger keeps whole seconds
    assert (ledger.preemptions, ledger.attempt) == (7, 3)


def test_the_next_attempt_waits_for_the_last_process_of_the_one_before() -> None:
    half = replace(RUNNING, processes=2, ends=(ProcessEnd("w1", at(100), 1),))
    ledger, step = look(PREPARED, 101, half)
    assert ledger == PREPARED  # the other one may still say more
    assert step == Wait(at(280), "Running", "Training", "attempt 1 is running")
    # 120 s of grace and 60 s more: it counts as lost, and attempt 2 is named
    ledger, step = look(ledger, 280, half)
    assert ledger.attempt == 2
    assert step == Stop("tiny-1", "LostInfrastructure", "its try has ended")
    told = replace(half, stopped_at=at(281), told_at=at(281))
    _, step = look(ledger, 460, told)
    assert step == Wait(at(461), "Recovering", "WaitingForLastAttempt", "tiny-1 is ending")
    _, step = look(ledger, 100_000, told)
    assert isinstance(step, Wait)
    assert step.reason == "VolumeHeldByLostNode"
    _, step = look(ledger, 100_000, told, workspace=WorkspaceState(shared=True))
    assert isinstance(step, StartAttempt)
    _, step = look(ledger, 100_000, replace(told, over=True, running=0))
    assert isinstance(step, StartAttempt)


def test_a_child_that_vanished_is_lost_infrastructure() -> None:
    ledger, step = look(PREPARED, 60)
    assert (ledger.attempt, ledger.preemptions, ledger.failures) == (2, 1, 0)
    assert ledger.last_failure is not None
    assert ledger.last_failure.class_ == "LostInfrastructure"
    assert isinstance(step, Wait)
    assert step.reason == "BackOff"


def test_one_of_two_processes_vanished_and_the_other_ended_well() -> None:
    both = replace(RUNNING, processes=2)
    ledger, _ = look(PREPARED, 60, over(both, 0, 60))
    assert not ledger.trained
    assert ledger.preemptions == 1


def test_what_the_attempt_really_resumed_from_corrects_the_entry() -> None:
    saved = Progress(job_uid=UID, attempt=1, claim=1, step=22, checkpoint=ref(1, 20))
    ledger, _ = look(PREPARED, 60, over(RUNNING, 1, 60), progress=saved)
    assert [(r.stopped_at, r.from_step, r.lost_steps) for r in ledger.resumes] == [(22, 20, 2)]
    claim = Claim(
        sequence=2,
        job_uid=UID,
        attempt=2,
        pod_uid="p",
        resumes_from=ref(1, 10),
        rejected=(Rejected(path="checkpoints/1/step-20", step=20, reason="digest differs"),),
        time="2026-01-01T00:02:00Z",
    )
    second = replace(RUNNING, name="tiny-2", uid="a2", active_since=at(100))
    ledger, _ = look(ledger, 100, second, claim=claim, progress=saved)
    (entry,) = ledger.resumes
    assert (entry.from_step, entry.lost_steps) == (10, 12)
    assert entry.rejected == ("checkpoints/1/step-20: digest differs",)
    assert ledger.checkpoint == ref(1, 10)


def test_a_checkpoint_that_was_not_heard_of_in_time_was_reached_all_the_same() -> None:
    """A node was lost at step 23; the last that was heard of it was step 14, before it saved 20."""
    heard = Progress(job_uid=UID, attempt=1, claim=1, step=14)
    ledger, _ = look(PREPARED, 60, over(RUNNING, 1, 60), progress=heard)
    assert [(r.stopped_at, r.from_step, r.lost_steps) for r in ledger.resumes] == [(14, 0, 14)]
    claim = Claim(
        sequence=2,
        job_uid=UID,
        attempt=2,
        pod_uid="p",
        resumes_from=ref(1, 20),
        time="2026-01-01T00:02:00Z",
    )
    second = replace(RUNNING, name="tiny-2", uid="a2", active_since=at(100))
    ledger, _ = look(ledger, 100, second, claim=claim)
    assert [(r.stopped_at, r.from_step, r.lost_steps) for r in ledger.resumes] == [(20, 20, 0)]


def test_a_raised_retry_generation_leaves_failed_from_the_stage_that_failed() -> None:
    ledger, step = look(PREPARED, 60, over(RUNNING, 14, 60))
    assert isinstance(step, Finish)
    assert not step.succeeded
    again = replace(Live.of(JOB.spec), recovery=Recovery(retry_generation=1))
    ledger, step = look(ledger, 500, over(RUNNING, 14, 60), live=again)
    assert isinstance(step, StartAttempt)
    assert (ledger.attempt, ledger.failures, ledger.retry_generation) == (2, 0, 1)
    assert ledger.resumes[-1].cause == "StorageFull"


def test_tries_of_a_preparation_wait_longer_and_begin_anew_with_a_retry() -> None:
    """Their numbers go on; suspensions are no failures, so they lengthen no wait either."""

    def prepared(ledger: Ledger, seconds: float, generation: int, **ended: Any) -> float:
        recovery = Recovery(max_failures=3, retry_generation=generation)
        live = replace(Live.of(JOB.spec), recovery=recovery, suspend="stopped" in ended)
        child = ledger.child
        assert child is not None
        running = ChildState(child.name, "p", running=1, active_since=at(seconds))
        ledger, _ = look(ledger, seconds, running, live=live, choices=None)
        code = 143 if "stopped" in ended else 1
        ledger, _ = look(ledger, seconds, over(running, code, seconds), live=live, choices=None)
        ledgers.append(ledger)
        if ledger.not_before is None:
            return 0.0
        return (datetime.fromisoformat(ledger.not_before) - at(seconds)).total_seconds()

    ledgers = [look(Ledger(), 0, choices=None)[0]]
    waits = [prepared(ledgers[-1], 1000.0 * n, 0) for n in range(4)]
    for least, wait in zip((10, 20, 40), waits[:3], strict=True):
        assert least <= wait <= least * 1.25 + 1
    assert (ledgers[-1].outcome, ledgers[-1].tries) == ("Failed", 4)
    again = replace(Live.of(JOB.spec), recovery=Recovery(retry_generation=1))
    ledgers.append(look(ledgers[-1], 5000, live=again, choices=None)[0])
    assert prepared(ledgers[-1], 6000, 1, stopped=True) == 0.0
    assert 10 <= prepared(ledgers[-1], 7000, 1) <= 13.5
    assert 20 <= prepared(ledgers[-1], 8000, 1) <= 26
    assert (ledgers[-1].tries, ledgers[-1].failures) == (8, 2)
    assert ledgers[-1].child is not None
    assert ledgers[-1].child.name == "tiny-prepare-8"


def test_a_retry_generation_of_a_job_that_goes_on_changes_nothing() -> None:
    again = replace(Live.of(JOB.spec), recovery=Recovery(retry_generation=1))
    ledger, _ = look(PREPARED, 60, RUNNING, live=again)
    assert ledger == PREPARED.model_copy(update={"retry_generation": 1})


def test_a_finished_job_expires() -> None:
    ledger, _ = look(PREPARED, 60, over(RUNNING, 13, 60))
    live = replace(Live.of(JOB.spec), ttl_seconds_after_finished=100)
    _, step = look(ledger, 100, live=live)
    assert isinstance(step, Finish)
    assert (step.expires, step.expired) == (at(160), False)
    _, step = look(ledger, 160, live=live)
    assert isinstance(step, Finish)
    assert step.expired


def test_a_finished_job_ends_what_still_runs() -> None:
    ledger, _ = look(PREPARED, 60, over(RUNNING, 13, 60))
    _, step = look(ledger, 61, RUNNING)
    assert step == Stop("tiny-1", "NonFiniteLoss", "the job has ended", None)


def test_a_workspace_that_cannot_be_used_is_waited_for() -> None:
    problem = Waiting("ClaimNotBound", "no volume of 500Gi")
    _, step = look(Ledger(), 0, choices=None, workspace=WorkspaceState(problem=problem))
    assert step == Wait(None, "Accepted", "ClaimNotBound", "no volume of 500Gi")


def test_a_crash_is_one_whether_the_job_is_suspended_while_the_others_save_or_not() -> None:
    """One of two crashes at 100 s; the job is suspended at 105 s; the other has saved at 130 s."""
    job = make_job({"resources": {"nodes": 2}})
    live = replace(Live.of(job.spec), suspend=True)
    crashed = ProcessEnd("tiny-1-1", at(100), 1)
    saving = replace(RUNNING, processes=2, ends=(crashed,), stopped_at=at(101))

    def seen(state: ChildState) -> Observed:
        return Observed(live=live, children=(state,), choices=make_choices())

    ledger = account(job, PREPARED, seen(saving), at(105))
    assert ledger.stopping is None
    assert isinstance(plan(job, ledger, seen(saving), at(105)), Wait)
    saved = ProcessEnd("tiny-1-0", at(130), 143)
    over_now = replace(saving, running=0, over=True, ends=(crashed, saved))
    ledger = account(job, ledger, seen(over_now), at(130))
    assert (ledger.failures, ledger.suspensions, ledger.attempt) == (1, 0, 2)
    assert ledger.last_failure is not None
    assert ledger.last_failure.class_ == "Crashed"
    step = plan(job, ledger, Observed(live=live, choices=make_choices()), at(1000))
    assert isinstance(step, Wait)
    assert step.condition == "Suspended"


def test_nothing_waits_for_a_time_that_a_wrong_clock_has_written() -> None:
    """The longest back-off is 10 minutes."""
    second = PREPARED.model_copy(
        update={"attempt": 2, "child": Child(kind="Process", name="tiny-2")}
    )
    late = second.model_copy(update={"not_before": "2026-03-02T12:00:00Z"})
    usual = second.model_copy(update={"not_before": text_of(at(600))})
    _, step = look(usual, 0)
    assert isinstance(step, Wait)
    assert (step.until, step.reason) == (at(600), "BackOff")
    _, step = look(late, 0)
    assert isinstance(step, StartAttempt)


def test_a_gang_that_never_was_whole_is_given_up_though_one_of_it_has_succeeded() -> None:
    """Nobody was told to end, and nothing has failed: the start has a deadline still."""
    job = make_job({"resources": {"nodes": 2}})  # recovery.startTimeout is 30m
    done = ProcessEnd("tiny-1-0", at(60), 0)
    state = replace(RUNNING, processes=2, running=0, ran=False, ends=(done,))
    seen = Observed(live=Live.of(job.spec), children=(state,), choices=make_choices())
    assert account(job, PREPARED, seen, at(1799)).stopping is None
    assert account(job, PREPARED, seen, at(1800)).stopping == "StartTimeout"
