"""Commands of the machine that answer at once."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
"""Debian keeps ip and iptables where a user's PATH may not look."""


def run(*words: str | Path, text: str | None = None, timeout: float = 300.0) -> str:
    """Return a command's output; raises RuntimeError with its words when it fails."""
    done = _run(words, text, timeout)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{' '.join(map(str, words))} ended with {done.returncode}:\n{said}")
    return done.stdout


def attempt(*words: str | Path, text: str | None = None, timeout: float = 60.0) -> bool:
    """Run a command that may fail, as when what it removes is gone; returns whether it did not."""
    return _run(words, text, timeout).returncode == 0


def _run(
    words: Sequence[str | Path], text: str | None, timeout: float
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env={**os.environ, "PATH": PATH},
    )
