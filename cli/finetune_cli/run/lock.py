"""The right to run the jobs of one name in a workspace: one process has it at a time."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from finetune_api.problem import Problem, Refused

_PATIENCE = 0.3
"""Seconds: somebody who only looks whether it is held has it for a moment."""


class Lock:
    """The right to run the jobs of one name in a workspace, held by one process at a time."""

    def __init__(self, workspace: Path, name: str) -> None:
        """Take it; raises ``Refused`` when another process has it."""
        workspace.mkdir(parents=True, exist_ok=True)
        self._stream = _path(workspace, name).open("a+", encoding="utf-8")
        until = time.monotonic() + _PATIENCE
        while not _locked(self._stream.fileno(), fcntl.LOCK_EX):
            if time.monotonic() < until:
                time.sleep(0.02)
                continue
            self._stream.seek(0)
            holder = self._stream.read().strip() or "unknown"
            self._stream.close()
            raise Refused(
                Problem(
                    code="already-running",
                    file=str(workspace),
                    message=f"another finetune run works on {name} (process {holder})",
                    fix=f"follow it with: finetune watch {name} --workspace {workspace};"
                    " or stop it first with Ctrl-C",
                )
            )
        self._stream.truncate(0)
        self._stream.write(str(os.getpid()))
        self._stream.flush()

    def release(self) -> None:
        """Give it back; the file stays."""
        self._stream.close()


def is_held(workspace: Path, name: str) -> bool:
    """Tell whether a process holds the lock; True where that cannot be seen."""
    try:
        with _path(workspace, name).open("rb") as stream:
            return not _locked(stream.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _path(workspace: Path, name: str) -> Path:
    return workspace / f".{name}.lock"


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
