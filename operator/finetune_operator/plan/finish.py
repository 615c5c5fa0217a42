"""Jobs that have ended, that are suspended, or that are to be tried again."""

from __future__ import annotations

from finetune_operator.plan.recovery import next_try
from finetune_operator.plan.situation import Situation, later, time_of
from finetune_operator.steps import Finish, Step, Stop, Wait


def retried(s: Situation) -> Situation:
    """Leave Failed from the stage that failed when ``recovery.retryGeneration`` was raised.

    The budgets start anew; what was prepared, trained and saved stays.
    """
    wanted = s.observed.live.recovery.retry_generation
    if wanted <= s.ledger.retry_generation:
        return s
    s = s.with_ledger(retry_generation=wanted)
    if s.ledger.outcome != "Failed":
        return s
    cause = s.ledger.last_failure.class_ if s.ledger.last_failure else "Crashed"
    return next_try(
        s.with_ledger(
            outcome=None,
            finished_at=None,
            failures=0,
            preemptions=0,
            attempts_without_progress=0,
            interrupted_starts=0,
            not_before=None,
            stopping=None,
        ),
        cause,
    )


def finished(s: Situation) -> Step | None:
    """End what still runs of a job that has its outcome, then rest until its time is over.

    What was told to end and gave no sign for longer than its grace period is waited for no longer:
    nothing starts after it.
    """
    ledger = s.ledger
    if ledger.outcome is None:
        return None
    for child in s.observed.children:
        lost_at = s.lost_at(child)
        if not child.over and (lost_at is None or s.now < lost_at):
            reason = ledger.last_failure.class_ if ledger.last_failure else "Stopped"
            return Stop(child.name, reason, "the job has ended", lost_at)
    ended = time_of(ledger.finished_at)
    ttl = s.observed.live.ttl_seconds_after_finished
    expires = later(ended, ttl) if ended is not None and ttl is not None else None
    return Finish(
        succeeded=ledger.outcome == "Succeeded",
        failure=ledger.last_failure if ledger.outcome == "Failed" else None,
        expires=expires,
        expired=expires is not None and s.now >= expires,
    )


def suspended(s: Situation) -> Step | None:
    """Rest while the job is suspended; what ran was stopped before."""
    if not s.observed.live.suspend or s.alive is not None:
        return None
    kept = s.ledger.checkpoint
    return Wait(
        None,
        "Suspended",
        "Suspended",
        f"checkpoint {kept.step} is kept" if kept else "nothing was saved yet",
    )
