"""Checks that no single field can make: the name, the paths of URIs, the division of batches."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from finetune_api import compatibility
from finetune_api.names import MAX_JOB_NAME
from finetune_api.problem import Problem
from finetune_operator.resolve.builtin import world_size
from finetune_operator.resolve.paths import look
from finetune_operator.resolve.wording import cut, quoted, read

_STAGES = ("-prepare", "-publish")
"""The second preparation of job x is x-prepare-2, and so would be the second attempt of x-prepare."""
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def name_problems(name: Any) -> list[Problem]:
    """Return what is wrong with the name of a job (RFC 1035 label, 40 characters at most)."""
    if name is None or name == "":
        return [
            Problem(
                code="missing-field",
                field="metadata.name",
                message="metadata.name is missing",
                fix="write metadata: {name: my-job}",
            )
        ]
    if not isinstance(name, str):
        return [
            Problem(
                code="wrong-type",
                field="metadata.name",
                message=cut(f"metadata.name must be text, not {read(name)}"),
                fix="write the name in quotes",
            )
        ]
    if not _NAME.fullmatch(name):
        return [
            Problem(
                code="invalid-name",
                field="metadata.name",
                message=cut(f"metadata.name {quoted(name)} cannot name Kubernetes objects"),
                fix=cut(
                    "use lower case letters, digits and '-', and begin with a letter"
                    + (f": {_slug(name)}" if _slug(name) else "")
                ),
            )
        ]
    if len(name) > MAX_JOB_NAME:
        return [
            Problem(
                code="name-too-long",
                field="metadata.name",
                message=cut(
                    f"metadata.name has {len(name)} characters; at most {MAX_JOB_NAME} leave room "
                    "for the names of its pods"
                ),
                fix=f"shorten it: {name[:MAX_JOB_NAME].rstrip('-')}",
            )
        ]
    if name.endswith(_STAGES):
        return [
            Problem(
                code="invalid-name",
                field="metadata.name",
                message=f"metadata.name {quoted(name)} ends as the names of other jobs' pods do",
                fix=f"end it otherwise than with {' or '.join(_STAGES)}",
            )
        ]
    return []


def _slug(name: str) -> str:
    """Return a valid name that looks like this one, empty where nothing is left of it."""
    text = re.sub(r"[^a-z0-9]+", "-", name.lower())[: MAX_JOB_NAME + 20].lstrip("-0123456789")
    return text[:MAX_JOB_NAME].strip("-")


def rule_problems(data: Any, broken: Collection[str]) -> list[Problem]:
    """Return what the rules between fields say of a merged spec.

    A rule about a field that is broken in itself is left out: it would only repeat it. ``broken``
    holds these fields.
    """
    found = [
        problem
        for problem in compatibility.evaluate(data)
        if not any(_touch(problem.field or "", field) for field in broken)
    ]
    unsure = any(_touch(size, field) for size in SIZES for field in broken)
    batch = None if unsure else _batch(data)
    others = [problem for problem in found if problem.code not in BATCH_CODES]
    return others + ([batch] if batch else [])


def _touch(one: str, other: str) -> bool:
    """Tell whether one field is the other, or holds it."""
    shorter, longer = sorted((one, other), key=len)
    return longer == shorter or longer.startswith((f"{shorter}.", f"{shorter}["))


BATCH_CODES = ("world-divides", "micro-batch-divides", "micro-batch-times-world-divides")
"""Rules that are said here with the numbers of the job, from the gravest."""


SIZES = (
    "spec.training.globalBatchSize",
    "spec.training.microBatchSize",
    "spec.resources.nodes",
    "spec.resources.processesPerNode",
    "spec.resources.accelerator.perNode",
)
"""What the division of batches is computed from."""


def _batch(data: Any) -> Problem | None:
    """Return the problem of a global batch that the ranks cannot share evenly.

    The global batch is ranks x micro batch x accumulation, in whole numbers.
    """
    whole = look(data, "training", "globalBatchSize")
    micro = look(data, "training", "microBatchSize")
    ranks = world_size(data)
    numbers = [whole, ranks, 1 if micro is None else micro]
    if not all(type(number) is int and number > 0 for number in numbers):
        return None
    unit = ranks * (micro or 1)
    if whole % unit == 0:
        return None
    share = f"{ranks} rank{'' if ranks == 1 else 's'}"
    if micro is not None:
        share += f" x microBatchSize {micro}"
    below = whole // unit * unit
    nearest = f"{below} or {below + unit}" if below else f"{unit}"
    fix = f"set globalBatchSize to {nearest}"
    field, code = "globalBatchSize", BATCH_CODES[0]
    if whole % ranks == 0:
        field, code = "microBatchSize", BATCH_CODES[1 if whole % micro else 2]
        fitting = max(size for size in range(1, micro + 1) if whole // ranks % size == 0)
        fix = f"set microBatchSize to {fitting}, or globalBatchSize to {nearest}"
    return Problem(
        code=code,
        field=f"spec.training.{field}",
        message=f"globalBatchSize {whole} cannot be divided by {unit} ({share})",
        fix=fix,
    )
