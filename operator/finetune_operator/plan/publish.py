"""Publishing: merge, verify and export what was trained."""

from __future__ import annotations

from finetune_operator.plan.situation import Situation
from finetune_operator.steps import StartPublish, Step, Wait


def wait(s: Situation) -> Step | None:
    """Wait for the publishing that runs."""
    child = s.alive
    if s.stage != "publish" or child is None:
        return None
    if child.waiting is not None:
        return Wait(s.given_up(child), "Running", child.waiting.reason, child.waiting.message)
    return Wait(s.given_up(child), "Running", "Publishing", "merging and verifying the model")


def start(s: Situation) -> Step | None:
    """Start the publishing that the ledger names."""
    if s.stage != "publish" or s.ledger.child is None or s.child is not None:
        return None
    return StartPublish(s.ledger.child)
