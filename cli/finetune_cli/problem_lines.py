"""Problems as lines for a person, and as JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from finetune_api.problem import Problem

WIDEST = 72
"""Codes stand in one column behind messages up to this width; longer messages push theirs out."""


def lines(problems: Sequence[Problem]) -> list[str]:
    """Return ``file:line:column  error  message  [code]`` and the fix below, in columns."""
    places = [problem.place for problem in problems]
    place_width = max(map(len, places), default=0)
    severity_width = max((len(problem.severity) for problem in problems), default=0)
    widths = [len(_flat(problem.message)) for problem in problems]
    message_width = max((width for width in widths if width <= WIDEST), default=0)
    out = []
    for place, problem in zip(places, problems, strict=True):
        start = f"{place:{place_width}} " if place_width else ""
        start += f"{problem.severity:{severity_width}}  "
        out.append(f"{start}{_flat(problem.message):{message_width}} [{problem.code}]")
        if problem.fix:
            out.append(f"{'':{len(start)}}fix: {_flat(problem.fix)}")
    return out


def as_json(problems: Sequence[Problem], **more: Any) -> str:
    """Return the problems as one JSON object: ``{valid, problems, ...}``."""
    data = {
        "valid": not any(problem.severity == "error" for problem in problems),
        "problems": [problem.to_json() for problem in problems],
        **more,
    }
    return json.dumps(data, indent=2, ensure_ascii=False)


def _flat(text: str) -> str:
    """Return text on one line, with control characters made visible."""
    if text.isprintable():
        return text
    return "".join(
        " " if char in "\r\n\t" else char if char.isprintable() else f"\\x{ord(char):02x}"
        for char in text
    )
