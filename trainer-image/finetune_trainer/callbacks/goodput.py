"""Seconds of one claim, by what the accelerators were held for."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any, Literal

from transformers import TrainerCallback

from finetune_api.reports import Goodput

Bucket = Literal["starting", "training", "saving", "evaluating"]


class Clock(TrainerCallback):  # type: ignore[misc]
    """Gives every second to one bucket.

    Steps up to ``furthest``, which an earlier claim had trained already, are lost time: summed over
    the claims of a job, no step counts as productive twice.
    """

    def __init__(
        self, began: float, *, furthest: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        """Start in ``starting``, at ``began``, when the process was started."""
        self._clock, self._since = clock, began
        self._bucket: Bucket = "starting"
        self._furthest = furthest
        self._seconds = {
            "starting": 0.0,
            "training": 0.0,
            "lost": 0.0,
            "saving": 0.0,
            "evaluating": 0.0,
        }
        self._unfinished = 0.0
        self._steps: list[float] = []

    def switch(self, bucket: Bucket) -> Bucket:
        """Give the time since the last switch to its bucket and begin another; return the old."""
        now = self._clock()
        took, self._since = max(0.0, now - self._since), now
        if self._bucket == "training":
            self._unfinished += took
        else:
            self._seconds[self._bucket] += took
        old, self._bucket = self._bucket, bucket
        return old

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give a finished step's time to the useful or to the lost ones."""
        self.switch("training")
        again = state.global_step <= self._furthest
        self._seconds["lost" if again else "training"] += self._unfinished
        self._steps = [*self._steps[-63:], self._unfinished]
        self._unfinished = 0.0

    @property
    def step_seconds(self) -> float | None:
        """The median of the last steps; None before there is one."""
        return median(self._steps) if self._steps else None

    def goodput(self) -> Goodput:
        """Return the seconds so far; a step that is not finished counts as lost."""
        self.switch(self._bucket)
        return Goodput(
            productive=round(self._seconds["training"], 3),
            starting=round(self._seconds["starting"], 3),
            saving=round(self._seconds["saving"], 3),
            evaluating=round(self._seconds["evaluating"], 3),
            lost=round(self._seconds["lost"] + self._unfinished, 3),
        )
