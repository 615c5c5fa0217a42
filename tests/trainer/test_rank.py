"""How one rank ends, beside what training itself does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_trainer import rank
from finetune_trainer import train as module
from finetune_trainer.listener import Listener
from harness.prepared_job import prepared_job

GLOO = "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:61669: Connection reset by peer"


@pytest.mark.parametrize(
    ("error", "code", "stays"),
    [
        (RuntimeError(GLOO), ExitCode.COMMUNICATION_LOST, [0.5]),
        (KeyError("no such thing"), 1, []),
    ],
)
def test_who_lost_the_others_goes_after_them(
    error: Exception, code: int, stays: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent tells of the rank that it finds gone first: that is to be the killed one."""
    slept = []

    def sleep(seconds: float) -> None:
        assert (tmp_path / "0.json").exists(), "what it has to say is there before it waits"
        slept.append(seconds)

    def lost(*_: Any) -> None:
        raise error

    monkeypatch.setattr(module, "train", lost)
    monkeypatch.setattr(rank.time, "sleep", sleep)
    config = prepared_job(tmp_path)

    assert rank.run(config, Listener(), 0, tmp_path) == code
    assert slept == stays
