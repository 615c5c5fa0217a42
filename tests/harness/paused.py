"""Pods whose processes stand still: SIGSTOP, as on a machine that is paused."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.tenant import processes_of


def pause(pods: Iterable[Mapping[str, Any]]) -> list[int]:
    """Stop all processes of the pods, the newest of each first; returns them."""
    processes = [process for pod in pods for process in reversed(processes_of(pod))]
    _tell(processes, signal.SIGSTOP)
    return processes


def told(pod: Mapping[str, Any]) -> bool:
    """Whether SIGTERM waits for a process of a pod that stands still."""
    return any(_waits(process, signal.SIGTERM) for process in processes_of(pod))


def pause_shims(pods: Iterable[Mapping[str, Any]]) -> list[int]:
    """Stop what stands between containerd and the pods' containers; returns it.

    Until it goes on nobody ends these containers, not even by SIGKILL; what they do themselves they
    do.
    """
    processes = [process for pod in pods for process in processes_of(pod)]
    shims = {_parent(process) for process in processes} - set(processes)
    for shim in shims:
        assert b"containerd-shim" in Path(f"/proc/{shim}/cmdline").read_bytes(), shim
    _tell(shims, signal.SIGSTOP)
    return sorted(shims)


def let_go_on(processes: Iterable[int]) -> None:
    """Let them go on."""
    _tell(processes, signal.SIGCONT)


def _waits(process: int, what: signal.Signals) -> bool:
    """Whether a signal to a process was sent and not heard yet."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return False
    (waiting,) = [int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd:")]
    return bool(waiting >> (what - 1) & 1)


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _tell(processes: Iterable[int], what: signal.Signals) -> None:
    for process in processes:
        try:
            os.kill(process, what)
        except ProcessLookupError:  # it has ended
            continue
