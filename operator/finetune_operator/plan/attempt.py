"""Attempts at training: one child each, single-shot."""

from __future__ import annotations

from finetune_api.resolved import Attempt, Choices, ResolvedJob
from finetune_operator.observed import ChildState
from finetune_operator.plan.situation import Situation
from finetune_operator.steps import StartAttempt, Step, Wait


def micro_batch(job: ResolvedJob, choices: Choices, halvings: int) -> int:
    """Return the sequences of one rank's pass after a number of halvings.

    The global batch stays what it is, so every size divides a rank's share of it; where half is no
    divisor, it is the next smaller one.
    """
    size = choices.micro_batch_size
    share = max(1, choices.global_batch_size // job.spec.resources.world_size)
    for _ in range(halvings):
        size = max((n for n in range(1, size // 2 + 1) if share % n == 0), default=1)
    return size


def wait(s: Situation) -> Step | None:
    """Wait for the attempt that runs, not longer than until something must be looked at again."""
    child = s.alive
    if s.stage != "train" or child is None:
        return None
    times = [at for at in (s.given_up(child), s.deadline, s.start_deadline) if at is not None]
    until = min(times, default=None)
    number = s.ledger.attempt
    if child.active_since is None:
        reason, message = _why(child, "Queued", "waiting to be admitted")
        return Wait(until, "Queued", reason, message)
    if not child.ran and not child.ends:
        reason, message = _why(child, "Starting", f"attempt {number} is starting")
        return Wait(until, "Recovering" if number > 1 else "Running", reason, message)
    return Wait(until, "Running", "Training", f"attempt {number} is running")


def start(s: Situation) -> Step | None:
    """Start the attempt that the ledger names."""
    if s.stage != "train" or s.ledger.child is None or s.child is not None:
        return None
    choices = s.observed.choices
    if choices is None:
        return Wait(
            None,
            "Recovering" if s.ledger.attempt > 1 else "Running",
            "PreparationMissing",
            "status.choices, what preparation chose, is gone: create the job again",
        )
    resources = s.job.spec.resources
    return StartAttempt(
        s.ledger.child,
        Attempt(
            number=max(1, s.ledger.attempt),
            nodes=resources.nodes,
            processes_per_node=resources.processes_per_node,
            micro_batch_size=micro_batch(s.job, choices, s.ledger.memory_halvings),
            known=s.ledger.checkpoint,
        ),
    )


def _why(child: ChildState, reason: str, message: str) -> tuple[str, str]:
    if child.waiting is None:
        return reason, message
    return child.waiting.reason, child.waiting.message
