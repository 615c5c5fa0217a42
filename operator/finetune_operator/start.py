"""``finetune-operator``: the operator as a process that may be told to end from its first moment.

The kernel ignores a signal to PID 1 that has no handler: without one here, a pod that is deleted while
the operator still imports would stay for its whole grace period.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> int:
    """Run the operator and return its exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    from finetune_operator.main import main as run

    return run()


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun, and what is imported just now must not catch it."""
    os._exit(128 + number)
