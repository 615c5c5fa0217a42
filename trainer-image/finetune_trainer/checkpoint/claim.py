"""Claims: the right of one gang to write into a job's folder, until a higher one exists.

A claim is a numbered file that rank 0 creates with O_EXCL. It fences all lower ones: whoever holds
a lower claim finds the higher one before its next commit or deletion, and stops.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from finetune_api.checkpoint import CheckpointRef, Claim, Rejected
from finetune_api.exit_codes import ExitCode
from finetune_api.names import Layout
from finetune_api.problem import Problem
from finetune_trainer.checkpoint import durable
from finetune_trainer.errors import StageError

_FILE = re.compile(r"^([1-9][0-9]*)\.json$")
_PATH = re.compile(r"^checkpoints/([1-9][0-9]*)/step-([0-9]+)$")


@dataclass(frozen=True)
class Span:
    """The checkpoints of one claim that are candidates: all, or those up to a step."""

    claim: int
    last_step: int | None = None


def now() -> str:
    """Return the time in the contract's form (RFC 3339, UTC)."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def sequences(layout: Layout) -> list[int]:
    """Return the numbers of all claims, readable or not, in order."""
    if not layout.claims.is_dir():
        return []
    names = (_FILE.match(entry.name) for entry in layout.claims.iterdir())
    return sorted(int(name[1]) for name in names if name)


def read(layout: Layout, sequence: int) -> Claim | None:
    """Return a claim; None when it is not there or was cut short by a crash."""
    try:
        return Claim.model_validate_json(layout.claim(sequence).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def read_all(layout: Layout) -> dict[int, Claim | None]:
    """Return every claim by its number; None for one that cannot be read."""
    return {sequence: read(layout, sequence) for sequence in sequences(layout)}


def take(
    layout: Layout,
    *,
    job_uid: str,
    attempt: int,
    pod_uid: str,
    resumes_from: CheckpointRef | None,
    rejected: tuple[Rejected, ...] = (),
) -> Claim:
    """Create the next claim on disk and return it. Only rank 0 calls this."""
    layout.claims.mkdir(parents=True, exist_ok=True)
    durable.flush_folder(layout.root)
    sequence = max(sequences(layout), default=0)
    while True:
        sequence += 1
        claim = Claim(
            sequence=sequence,
            job_uid=job_uid,
            attempt=attempt,
            pod_uid=pod_uid,
            resumes_from=resumes_from,
            rejected=rejected,
            time=now(),
        )
        data = json.dumps(claim.to_json(), indent=1).encode()
        if durable.create_exclusively(layout.claim(sequence), data):
            return claim


def newer(layout: Layout, sequence: int) -> bool:
    """Tell whether a higher claim exists, so that the holder of this one is fenced.

    The next number is opened by name as well: a network file system may list a folder from a cache.
    """
    if layout.claim(sequence + 1).exists():
        return True
    return max(sequences(layout), default=0) > sequence


def fence(layout: Layout, sequence: int) -> None:
    """Raise ``StageError`` (21) when a higher claim exists. Changes nothing."""
    if newer(layout, sequence):
        highest = max(sequences(layout), default=sequence + 1)
        raise StageError(
            ExitCode.FENCED,
            Problem(
                code="fenced",
                message=f"claim {sequence} was superseded by claim {highest}: another attempt of "
                "this job owns the folder now",
                fix="Nothing is to be done: the newer attempt goes on from the checkpoint that its "
                "claim names. This process changed nothing of it.",
            ),
        )


def lineage(claims: Mapping[int, Claim | None]) -> tuple[Span, ...]:
    """Return the line of descent of the newest claim, itself first.

    What a claim wrote beyond the step from which its successor resumed is not part of it: another
    line was trained from there, or it was found unusable. An unreadable claim wrote nothing that
    tells its origin, so the claim before it takes its place.
    """
    spans: list[Span] = []
    current = Span(max(claims, default=0))
    while current.claim > 0:
        spans.append(current)
        claim = claims.get(current.claim)
        if claim is None:
            current = Span(max((number for number in claims if number < current.claim), default=0))
            continue
        origin = claim.resumes_from
        place = _PATH.match(origin.path) if origin else None
        if place is None or int(place[1]) >= current.claim:
            break
        current = Span(int(place[1]), int(place[2]))
    return tuple(spans)
