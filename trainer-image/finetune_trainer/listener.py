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
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = True
        if self.interruptible:
            raise Signalled

    def loaded(self) -> None:
        """From now on only remember: all ranks stop together.

        Raises:
            Signalled: a signal was heard before.
        """
        self.interruptible = False
        if self.heard:
            raise Signalled
