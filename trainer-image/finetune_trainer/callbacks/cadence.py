"""When to save: as often as ``maxLostWork`` asks for, as seldom as ``maxOverhead`` demands.

Rank 0 alone looks at a clock. It asks ``due()`` at every micro-batch and puts the answer into the
agreement that signals use (an asynchronous maximum over all ranks), so that all ranks save the same
step; ``saved(...)`` after each save. A fixed cadence is a matter of counting, on every rank alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from finetune_api.job.lifecycle import Checkpoint
from finetune_api.quantity import parse_duration


def pause(save_seconds: float, step_seconds: float, lost: float, overhead: float) -> float:
    """Return the seconds of training between the end of one save and the start of the next.

    Training is never stopped for more than ``overhead`` of all time: with ``w`` seconds of work
    between saves of ``s`` seconds, ``s / (w + s) <= overhead``. Within that, no more than ``lost``
    seconds are unsaved when the next save is done: it begins one step and one save before.
    """
    needed = save_seconds * (1 - overhead) / overhead if overhead > 0 else float("inf")
    return max(needed, lost - step_seconds - save_seconds, 0.0)


class Cadence:
    """The decision of rank 0, from its own clock."""

    def __init__(
        self, spec: Checkpoint, *, step: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start counting at ``step``, which is saved already or the beginning."""
        self._spec, self._clock = spec, clock
        self._lost = parse_duration(spec.max_lost_work)
        self._saved_step = self._step = step
        self._save_seconds = 0.0
        self._step_seconds = 0.0
        self.begin()

    def begin(self) -> None:
        """Count from now on: nothing was trained before."""
        self._since = self._last = self._clock()
        self._asked = False

    def step_ended(self, step: int) -> None:
        """Note the end of an optimizer step and how long it took."""
        now = self._clock()
        if step > self._step:
            took = (now - self._last) / (step - self._step)
            self._step_seconds = took if not self._step_seconds else (self._step_seconds + took) / 2
        self._step, self._last = step, now

    def due(self) -> bool:
        """Tell whether the last ended step should be saved.

        By the clock this is said once for each save: an answer that is under way to the other ranks
        while they save would make them save again.
        """
        if self._step <= self._saved_step:
            return False
        if self._spec.every_steps is not None:
            return self._step - self._saved_step >= self._spec.every_steps
        if self._asked:
            return False
        wait = pause(self._save_seconds, self._step_seconds, self._lost, self._spec.max_overhead)
        self._asked = self._clock() - self._since >= wait
        return self._asked

    def saved(self, step: int, took: float) -> None:
        """Note that ``step`` was saved just now, in ``took`` seconds."""
        self._saved_step, self._save_seconds = step, took
        self.begin()
