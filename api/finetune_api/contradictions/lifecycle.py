"""Checkpoints: when they are made."""

from __future__ import annotations

from finetune_api.condition import All, Eq, Has, Not
from finetune_api.rule import Rule

ROWS: tuple[Rule, ...] = (
    Rule(
        code="no-time-for-checkpoints",
        field="checkpoint.maxOverhead",
        when=All(Eq("checkpoint.maxOverhead", 0.0), Not(Has("checkpoint.everySteps"))),
        message="maxOverhead 0 leaves no time for a checkpoint: a preemption would lose all work",
        fix="set it to 0.05 or leave it out, or set checkpoint.everySteps",
        bad={"checkpoint": {"maxOverhead": 0}},
        good={"checkpoint": {"maxOverhead": 0, "everySteps": 100}},
    ),
)
