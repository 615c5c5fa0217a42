"""Preparation: no accelerator is asked for before it has succeeded."""

from __future__ import annotations

from finetune_operator.plan.situation import Situation
from finetune_operator.steps import StartPrepare, Step, Wait


def first(s: Situation) -> Situation:
    """Name the first child of a job that has none yet."""
    if s.ledger.child is not None or s.ledger.outcome is not None or s.ledger.prepared:
        return s
    return s.with_ledger(child=s.named("prepare", 1), tries=1)


def wait(s: Situation) -> Step | None:
    """Wait for the preparation that runs."""
    child = s.alive
    if s.stage != "prepare" or child is None:
        return None
    if child.waiting is not None:
        return Wait(s.given_up(child), "Prepared", child.waiting.reason, child.waiting.message)
    return Wait(s.given_up(child), "Prepared", "Preparing", "reading model and data")


def start(s: Situation) -> Step | None:
    """Start the preparation that the ledger names."""
    if s.stage != "prepare" or s.ledger.child is None or s.child is not None:
        return None
    return StartPrepare(s.ledger.child)
