"""Paths in an object, as data and as people read them: ``spec.dataset.train[0].uri``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Path = tuple[str | int, ...]

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_LONGEST = 400


def path_text(path: Sequence[str | int]) -> str:
    """Return a path for people; keys with dots or slashes stand in brackets.

    ``("resources", "nodeSelector", "nvidia.com/gpu")`` is
    ``resources.nodeSelector[nvidia.com/gpu]``. A path that is too long for a problem is cut.
    """
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
        elif _PLAIN.fullmatch(part):
            out += f".{part}" if out else part
        else:
            out += f"[{part}]"
    return out if len(out) <= _LONGEST else out[:_LONGEST] + "..."


def under(root: str, path: Sequence[str | int]) -> str:
    """Return the text of a path below a place such as ``spec`` or ``spec.defaults``."""
    text = path_text(path)
    if not root or not text:
        return root or text
    return root + text if text.startswith("[") else f"{root}.{text}"


def look(data: Any, *path: str | int) -> Any:
    """Return the value at a path of raw data, None where there is nothing or no such shape."""
    for part in path:
        if isinstance(part, str) and isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(part, int) and isinstance(data, list) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def deeper_than(data: Any, limit: int) -> bool:
    """Tell whether JSON data is nested deeper than ``limit``, without recursion."""
    level = [data]
    for _ in range(limit):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def larger_than(data: Any, limit: int) -> bool:
    """Tell whether JSON data holds more than ``limit`` values, without recursion."""
    count, left = 0, [data]
    while left:
        item = left.pop()
        if not isinstance(item, dict | list):
            continue
        count += len(item)
        if count > limit:
            return True
        left.extend(item.values() if isinstance(item, dict) else item)
    return False
