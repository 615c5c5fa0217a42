"""Processes of this machine, found through /proc."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below one, nearest first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parent = _parent(entry)
            if parent is not None:
                children.setdefault(parent, []).append(int(entry.name))
    found = list(children.get(pid, []))
    for child in found:
        found += children.get(child, [])
    return found


def kill_all(pids: Iterable[int]) -> None:
    """Send SIGKILL to each; one that is gone already is passed over."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _parent(entry: Path) -> int | None:
    """Return the parent of a process, None when it has just ended."""
    try:
        # The name in parentheses may hold anything; what follows it is: state, parent, ...
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None
