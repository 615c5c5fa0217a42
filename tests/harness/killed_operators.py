"""A life in which no operator lives longer than until its first write.

It is killed before the API server sees a write, and the next one after that write was stored and
before the answer comes: each write of the life is met in both ways.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.api_proxy import ApiProxy, EachWriteTwice
from harness.jobs import Jobs
from harness.operator_driver import IMAGE, operator_token
from harness.operator_forks import Forks

STANDSTILL = 60.0
"""Seconds without another cut after which nothing goes on: each costs a start and a back-off."""
FLAGS = ["--trainer-image", IMAGE, "--probe-address", "127.0.0.1", "--probe-port", "0"]


class KilledOperators:
    """Operators of one namespace, one after the other."""

    def __init__(self, jobs: Jobs, folder: Path) -> None:
        """Make them ready; none runs yet."""
        self._jobs = jobs
        self._cut = EachWriteTwice()
        token = operator_token(jobs.api, jobs.namespace)
        self._proxy = ApiProxy(jobs.api, folder, token)
        self._forks = Forks(self._proxy.kubeconfig, folder / "operator.log")
        self._proxy.cut, self._proxy.killed = self._cut, self._forks.kill

    def work_until_ended(self, name: str) -> None:
        """Start one whenever the last was killed, until a job has ended.

        How long that takes in all is the machine's affair; only a standstill is none.
        """
        asked, seen, since = 0.0, 0, time.monotonic()
        while True:
            if not self._forks.alive():
                self._forks.start("--namespaces", self._jobs.namespace, *FLAGS)
            now = time.monotonic()
            if now - asked > 0.5:
                if self._jobs.outcome(name):
                    return
                asked = now
            cuts = self._cut.cuts
            if len(cuts) > seen:
                seen, since = len(cuts), now
            assert now - since < STANDSTILL, f"{len(cuts)} cuts, the last {cuts[-1:]}"
            time.sleep(0.02)

    def stored(self, method: str) -> list[str]:
        """Return the last part of what was written by a method and stored, in order."""
        stored = [write for when, write in self._cut.cuts if when == "after"]
        return [write.rpartition("/")[2] for write in stored if write.startswith(f"{method} ")]

    def survived(self) -> list[str]:
        """Return the writes that no operator was killed at; Events are not counted."""
        return [write for write in self._proxy.passed if "/events/" not in write]

    def stop(self) -> None:
        """End the operator and the proxy."""
        self._forks.stop()
        self._proxy.stop()


@contextmanager
def killed_operators(jobs: Jobs, folder: Path) -> Iterator[KilledOperators]:
    """Have such operators for the length of a block."""
    operators = KilledOperators(jobs, folder)
    try:
        yield operators
    finally:
        operators.stop()
