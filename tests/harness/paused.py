"""Pods whose processes stand still: SIGSTOP, as on a machine that is paused."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from typing import Any

from harness.tenant import processes_of


def pause(pods: Iterable[Mapping[str, Any]]) -> list[int]:
    """Stop all processes of the pods, the newest of each first; returns them."""
    processes = [process for pod in pods for process in reversed(processes_of(pod))]
    _tell(processes, signal.SIGSTOP)
    return processes


def let_go_on(processes: Iterable[int]) -> None:
    """Let them go on."""
    _tell(processes, signal.SIGCONT)


def _tell(processes: Iterable[int], what: signal.Signals) -> None:
    for process in processes:
        try:
            os.kill(process, what)
        except ProcessLookupError:  # it has ended
            continue
