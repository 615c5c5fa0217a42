"""A bar on a terminal, a plain line now and then elsewhere: only for what takes a while."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

QUIET_SECONDS = 10.0
LINE_SECONDS = 30.0


class Ticker:
    """Counts rows of one pass; says nothing when the pass ends within ten seconds."""

    def __init__(self, label: str, total: int | None = None) -> None:
        """Name the pass and, where it is known, how many rows it has."""
        self._label, self._total = label, total
        self._started = self._next = time.monotonic()
        self._next += QUIET_SECONDS
        self._rows = 0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Ticker:
        """Start to count."""
        return self

    def tick(self) -> None:
        """Count one row."""
        self._rows += 1
        if self._rows & 0xFF == 0 and time.monotonic() >= self._next:
            self._show()

    def _show(self) -> None:
        now = time.monotonic()
        if sys.stderr.isatty():
            self._next = now + 0.25
            self._draw()
            return
        self._next = now + LINE_SECONDS
        of = f" of {self._total:,}" if self._total else ""
        rate = self._rows / (now - self._started)
        sys.stderr.write(f"{self._label}: {self._rows:,}{of} rows, {rate:,.0f} rows/s\n")
        sys.stderr.flush()

    def _draw(self) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._label, total=self._total)
            self._bar.start()
        self._bar.update(self._task, completed=self._rows)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
