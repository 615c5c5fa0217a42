"""Rules between fields of a job's spec, of both kinds: contradictions and what is not done yet.

Bounds of single fields stand in the models. What needs the model or the data is found by
preparation. A row is never tightened within a version of the API.
"""

from __future__ import annotations

from typing import Any

from finetune_api.contradictions import CONTRADICTIONS
from finetune_api.contradictions.choices import ENGINES, METHODS, OBJECTIVES
from finetune_api.not_supported import NOT_SUPPORTED
from finetune_api.problem import Problem
from finetune_api.rule import Rule

RULES: tuple[Rule, ...] = CONTRADICTIONS + NOT_SUPPORTED

EXCLUSIVE: tuple[tuple[tuple[str, ...], ...], ...] = (
    tuple((path,) for path in METHODS),
    tuple((path,) for path in OBJECTIVES),
    tuple((path,) for path in ENGINES),
    (("dataset.validation.fraction",), ("dataset.validation.sources",)),
    (("training.warmupRatio",), ("training.warmupSteps",)),
    (("workspace.claimName",), ("workspace.size", "workspace.storageClassName")),
)
"""Groups of fields that shut each other out. Where a higher layer (the user, a profile) holds a
field of one group, ``resolve`` drops the other groups from the layers below it."""


def evaluate(spec: Any) -> list[Problem]:
    """Return what the rules say of a raw spec (camelCase), in the order of the rows.

    Works on any data: what a user wrote, what a profile and the built-in layer made of it, or
    something that the schema refuses. Never raises.
    """
    return [problem for rule in RULES for problem in rule.problems(spec)]
