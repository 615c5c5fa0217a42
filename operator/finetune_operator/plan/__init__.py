"""The planner: ``account`` brings the ledger up to what was seen, ``plan`` says what to do next.

An executor (the operator, or ``finetune run``) does the same four things again and again: look,
``account``, write the new ledger if it differs, ``plan`` and carry the step out. Both functions
are pure and never raise for anything that was observed. The ledger is written before the step is
carried out, so an executor may be killed at any point and go on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from finetune_api.resolved import ResolvedJob
from finetune_api.status import Ledger
from finetune_operator.observed import Observed
from finetune_operator.plan import attempt, finish, prepare, publish, recovery
from finetune_operator.plan.situation import Situation
from finetune_operator.steps import Step, Wait

ACCOUNTS: tuple[Callable[[Situation], Situation], ...] = (
    finish.retried,
    prepare.first,
    recovery.learned,
    recovery.ended,
    recovery.told_to_stop,
)
"""Each brings one kind of news into the ledger."""

STAGES: tuple[Callable[[Situation], Step | None], ...] = (
    finish.finished,
    recovery.stop,
    recovery.stragglers,
    finish.suspended,
    recovery.workspace,
    prepare.wait,
    attempt.wait,
    publish.wait,
    recovery.wait_for_back_off,
    prepare.start,
    attempt.start,
    publish.start,
)
"""The first that has an answer decides."""


def account(job: ResolvedJob, ledger: Ledger, observed: Observed, now: datetime) -> Ledger:
    """Return the ledger after what was seen: ends, counters, and the number of the next attempt.

    The end of attempt k (cause, counters, resume entry) and the number k+1 come in one new ledger.
    The same evidence twice changes nothing more.
    """
    situation = Situation(job, ledger, observed, now)
    for step in ACCOUNTS:
        situation = step(situation)
    return situation.ledger


def plan(job: ResolvedJob, ledger: Ledger, observed: Observed, now: datetime) -> Step:
    """Return the one next step for a ledger that ``account`` has brought up to date."""
    situation = Situation(job, ledger, observed, now)
    for stage in STAGES:
        step = stage(situation)
        if step is not None:
            return step
    return Wait(None, "Accepted", "NothingToDo", "")
