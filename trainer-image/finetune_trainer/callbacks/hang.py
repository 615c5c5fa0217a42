"""A rank that stands still is ended: a collective that waits for a dead peer waits forever."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from finetune_api.exit_codes import ExitCode

FLOOR = 600.0
"""Seconds that are always granted."""
FACTOR = 10.0
"""Times the median step."""
SLOW = 3600.0
"""Seconds that are granted as long as no step tells how long one takes, and in a save."""


def allowed(step_seconds: float | None, *, floor: float = FLOOR, patience: float = 1.0) -> float:
    """Return the seconds after which a rank without a step counts as hung.

    ``patience``: how much longer it may take than usual, above 1 in a save alone. How fast a volume
    is does not depend on how fast the steps are.
    """
    if step_seconds is None or patience > 1.0:
        floor = max(SLOW, floor)
    return max(FACTOR * (step_seconds or 0.0), floor) * patience


class Watchdog(TrainerCallback):  # type: ignore[misc]
    """A thread that looks at the time of the last sign of life."""

    def __init__(
        self,
        log: Path,
        step_seconds: Callable[[], float | None],
        *,
        floor: float = FLOOR,
        end: Callable[[], None] | None = None,
    ) -> None:
        """``end`` is called after the stacks were dumped to ``log``; the process exits then."""
        self._log, self._step_seconds, self._floor = log, step_seconds, floor
        self._end = end
        self._last = time.monotonic()
        self._patience = 1.0
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="hang-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    def beat(self) -> None:
        """Give a sign of life."""
        self._last = time.monotonic()

    def patient(self, times: float) -> None:
        """Allow ``times`` the usual, until the next call: while saving."""
        self._patience = times
        self.beat()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A micro-batch is done."""
        self.beat()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step is done."""
        self.beat()

    def _watch(self) -> None:
        while not self._stopped.wait(min(5.0, self._floor / 4)):
            limit = allowed(self._step_seconds(), floor=self._floor, patience=self._patience)
            if time.monotonic() - self._last > limit:
                self._bark(limit)
                return

    def _bark(self, limit: float) -> None:
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as stream:
                stream.write(f"no step within {limit:.0f} s; the stacks of all threads:\n")
                stream.flush()
                faulthandler.dump_traceback(stream, all_threads=True)
        finally:
            if self._end is not None:
                self._end()
            os._exit(int(ExitCode.COMMUNICATION_LOST))
