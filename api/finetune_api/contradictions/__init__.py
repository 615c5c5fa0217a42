"""Specs that contradict themselves: the rows that stay, a file a topic."""

from finetune_api.contradictions import (
    choices,
    inputs,
    lifecycle,
    lora,
    objective,
    packing,
    resources,
    training,
)
from finetune_api.rule import Rule

CONTRADICTIONS: tuple[Rule, ...] = (
    *choices.ROWS,
    *training.ROWS,
    *resources.ROWS,
    *lifecycle.ROWS,
    *inputs.ROWS,
    *objective.ROWS,
    *packing.ROWS,
    *lora.ROWS,
)
