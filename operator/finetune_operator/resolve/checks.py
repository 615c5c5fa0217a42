"""Checks that no single field can make: the name, the paths of URIs, the division of batches."""

from __future__ import annotations

import re
from typing import Any

from finetune_api.job import JobSpec
from finetune_api.names import MAX_JOB_NAME
from finetune_api.problem import Problem
from finetune_api.source import parse_uri
from finetune_operator.resolve.ceilings import uris
from finetune_operator.resolve.wording import cut, quoted, read

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
    return []


def _slug(name: str) -> str:
    """Return a valid name that looks like this one, empty where nothing is left of it."""
    text = re.sub(r"[^a-z0-9]+", "-", name.lower())[: MAX_JOB_NAME + 20].lstrip("-0123456789")
    return text[:MAX_JOB_NAME].strip("-")


def uri_problems(spec: JobSpec) -> list[Problem]:
    """Return URIs whose path would leave its claim."""
    found = []
    for field, text in uris(spec):
        try:
            parse_uri(text)
        except ValueError:
            found.append(
                Problem(
                    code="wrong-format",
                    field=field,
                    message=cut(f"{field} {quoted(text)} contains . or .. in its path"),
                    fix="write the path from the root of the claim: pvc://claim/folder/file",
                )
            )
    return found


def batch_problems(spec: JobSpec) -> list[Problem]:
    """Return the problem of a global batch that the ranks cannot share evenly.

    The global batch is ranks x micro batch x accumulation, in whole numbers.
    """
    whole = spec.training.global_batch_size
    if whole is None:
        return []
    ranks, micro = spec.resources.world_size, spec.training.micro_batch_size
    unit = ranks * (micro or 1)
    if whole % unit == 0:
        return []
    share = f"{ranks} rank{'' if ranks == 1 else 's'}"
    if micro is not None:
        share += f" x microBatchSize {micro}"
    below = whole // unit * unit
    nearest = f"{below} or {below + unit}" if below else f"{unit}"
    fix = f"set globalBatchSize to {nearest}"
    if micro is not None and whole % ranks == 0:
        fitting = max(size for size in range(1, micro + 1) if whole // ranks % size == 0)
        fix += f", or microBatchSize to {fitting}"
    return [
        Problem(
            code="batch-not-divisible",
            field="spec.training.globalBatchSize",
            message=f"globalBatchSize {whole} cannot be divided by {unit} ({share})",
            fix=fix,
        )
    ]
