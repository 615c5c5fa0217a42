"""How large a status may be: every change of a job carries it to everybody who watches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from finetune_api.document import Document, canonical
from finetune_api.status import JobStatus

MOST = 16_000
"""Bytes of its JSON."""
_CUT = "..."
_Part = TypeVar("_Part", bound=Document)


def within(status: JobStatus, most: int = MOST) -> JobStatus:
    """Return the status with its longest texts cut until it is small enough.

    What is told elsewhere in full goes first: why values were chosen (in the report), why older
    checkpoints were passed over (in the claims), messages of conditions that do not hold. Numbers,
    names, digests and times stay. Cutting what was cut changes nothing.
    """
    for shorter in (status, *_shorter(status)):
        if len(canonical(shorter.to_json())) <= most:
            return shorter
    return shorter


def _shorter(status: JobStatus) -> Iterator[JobStatus]:
    """Yield the status with more and more of it cut."""

    def cut(**changes: Any) -> JobStatus:
        nonlocal status
        status = status.model_copy(update=changes)
        return status

    chosen = status.chosen
    for length in (128, 64):
        yield cut(chosen=tuple(_texts(one, length, "reason", "value") for one in chosen))
    told = status.conditions
    yield cut(
        conditions=tuple(
            one if one.status == "True" else _texts(one, 128, "message") for one in told
        )
    )
    older, newest = status.resumes[:-1], status.resumes[-1:]
    yield cut(resumes=(*(one.model_copy(update={"rejected": ()}) for one in older), *newest))
    yield cut(chosen=())
    for length in (512, 256, 192):
        yield cut(conditions=tuple(_texts(one, length, "message") for one in status.conditions))
        if status.last_failure is not None:
            yield cut(last_failure=_texts(status.last_failure, length, "message", "fix"))


def _texts(one: _Part, length: int, *fields: str) -> _Part:
    """Return it with some of its texts cut to so many characters."""
    long = {name: text for name in fields if len(text := str(getattr(one, name))) > length}
    if not long:
        return one
    cut = {name: text[: length - len(_CUT)] + _CUT for name, text in long.items()}
    return one.model_copy(update=cut)
