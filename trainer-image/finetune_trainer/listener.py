"""What a process does about SIGTERM and SIGINT; light, so that it is the first thing that runs."""

from __future__ import annotations

import signal
from types import FrameType

from finetune_trainer.errors import Signalled


class Listener:
    """Remembers a signal, and ends the process at once while there is nothing to save."""

    def __init__(self) -> None:
        """Start in the phase in which nothing is to be saved: imports, loading the model."""
        self.heard = False
        self.interruptible = True

    def install(self) -> None:
        """Hear SIGTERM and SIGINT from now on."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = True
        if self.interruptible:
            # Python drops an exception that is raised inside a destructor or a callback of the
            # garbage collector, so it is raised again until somebody has seen it.
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            raise Signalled

    def uninterruptible(self) -> None:
        """From now on only remember."""
        self.interruptible = False
        signal.setitimer(signal.ITIMER_REAL, 0.0)

    def loaded(self) -> None:
        """There is something to save now: from here on all ranks stop together.

        Raises:
            Signalled: a signal was heard before.
        """
        self.uninterruptible()
        if self.heard:
            raise Signalled
