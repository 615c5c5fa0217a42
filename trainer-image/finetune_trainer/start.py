"""``finetune-trainer`` as a process: as PID 1 it hears signals before anything else is imported."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def main() -> int:
    """Run the stage that the arguments name and return its exit code."""
    if os.getpid() == 1:
        become_init()
    leave_out()
    from finetune_trainer.main import main as run

    return run()


def leave_out() -> None:
    """Let other libraries not find ``datasets``, which none of this uses.

    They would import it, with pandas and pyarrow, on the way to a Trainer: a fifth of the time from
    a pod's start to its first step.
    """
    sys.modules.setdefault("datasets", None)  # type: ignore[arg-type]


def become_init() -> None:
    """As PID 1: fork, let the child do the work, and here pass signals on and reap orphans.

    Returns in the child alone. A signal that comes before there is a child to pass it on to waits.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        try:
            os.kill(child, number)
        except ProcessLookupError:
            return

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except InterruptedError:
            continue
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(128 - code if code < 0 else code)
