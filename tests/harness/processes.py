"""Child processes that are stopped by their own id and never outlive the tests."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_GIVEN: set[int] = set()
_LIBC = ctypes.CDLL(None, use_errno=True)


_PORTS = range(20_000, 30_000)
"""Below those that the kernel gives to connections, and those of services: what listens on one and is
started again finds it free."""


def free_port() -> int:
    """Return a port of this machine that nobody listens on now, another one each time."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        if port not in _GIVEN:
            _GIVEN.add(port)
            return port
    raise RuntimeError(f"no port of {_PORTS.start} to {_PORTS.stop - 1} is free")


def _end_with_parent() -> None:
    """Ask the kernel to kill this process when the tests die, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class Process:
    """One process with a log file of its own."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    def ended(self) -> bool:
        """Whether it is gone."""
        return self.popen.poll() is not None

    def tail(self, lines: int = 15) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, grace: float = 10.0) -> None:
        """Send SIGTERM, wait, then SIGKILL; returns when it is gone."""
        if self.ended():
            return
        self.popen.terminate()
        try:
            self.popen.wait(grace)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


def start(
    name: str, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
) -> Process:
    """Start a command with its output in a file."""
    with log.open("ab") as out:
        popen = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - it calls into libc alone
        )
    return Process(name, popen, log)


def ask_until(
    ask: Callable[[], Any],
    what: str,
    timeout: float = 60.0,
    processes: Sequence[Process] = (),
    pause: float = 0.1,
) -> Any:
    """Ask until the answer is true and return it; with time up, RuntimeError has the logs."""
    deadline = time.monotonic() + timeout
    while True:
        found = ask()
        if found:
            return found
        if time.monotonic() > deadline:
            tails = "".join(f"\n--- {p.name}\n{p.tail(40)}" for p in processes)
            raise RuntimeError(f"{what} took more than {timeout:.0f} s{tails}")
        time.sleep(pause)


def wait_until(
    ready: Callable[[], bool], what: str, processes: Sequence[Process], timeout: float = 60.0
) -> None:
    """Ask until ready; raises RuntimeError with the log when a process ends or time is up."""

    def still_ready() -> bool:
        for process in processes:
            if process.ended():
                raise RuntimeError(
                    f"{process.name} ended with {process.popen.returncode} before {what}:\n"
                    f"{process.tail()}"
                )
        return ready()

    ask_until(still_ready, what, timeout, processes, pause=0.05)
