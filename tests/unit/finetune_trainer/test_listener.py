from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from finetune_trainer.errors import Signalled
from finetune_trainer.listener import Listener


@pytest.fixture
def listener() -> Iterator[Listener]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    made = Listener()
    made.install()
    yield made
    made.uninterruptible()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_while_there_is_nothing_to_save_a_signal_ends_it_at_once(listener: Listener) -> None:
    with pytest.raises(Signalled):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert listener.heard


def test_an_exception_that_python_drops_is_raised_again(listener: Listener) -> None:
    class Dropping:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)

    dropped: list[object] = []
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: dropped.append(unraisable.exc_type)
    try:
        with pytest.raises(Signalled):
            Dropping()
            assert dropped == [Signalled]
            time.sleep(5)
    finally:
        sys.unraisablehook = hook


def test_later_it_is_only_remembered(listener: Listener) -> None:
    listener.loaded()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)
    assert listener.heard


def test_one_that_came_before_is_not_forgotten(listener: Listener) -> None:
    listener.heard = True
    with pytest.raises(Signalled):
        listener.loaded()
