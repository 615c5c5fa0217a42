"""What a node does about a signal before and while its ranks start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune_api.names import Layout
from finetune_api.resolved import Attempt
from finetune_trainer import supervisor
from harness.stage_config import make_config, write_config

SOON = 30.0
"""Seconds: far below those that torch's store and the name of a node are waited for."""


@contextmanager
def a_second_node(root: Path, address: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The supervisor of node 1 of 2, as a process."""
    attempt = Attempt(number=1, nodes=2, processes_per_node=1, micro_batch_size=1)
    config = make_config(root, "train", attempt=attempt)
    file = write_config(config, root / "attempt.json")
    environment = {
        **os.environ,
        "FINETUNE_NODE_RANK": "1",
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "FINETUNE_TERMINATION_LOG": str(root / "end.json"),
        "TMPDIR": str(root),
    }
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer.main", "train", "--config", str(file)],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(happened: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def hears(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM."""
    caught = Path(f"/proc/{pid}/status").read_text().partition("\nSigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def asked_to_stop(process: subprocess.Popen[bytes], root: Path) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=SOON) == 143, (root / "log").read_text()
    end = json.loads((root / "end.json").read_text())
    assert (end["exitCode"], end["message"], end["node"]) == (143, "asked to stop", 1)
    assert Layout(root / "workspace").end_report(0, 1).exists()
    assert (root / "log").read_text() == "asked to stop\n"
    assert not list(root.glob("finetune-ends-*"))


@pytest.mark.timeout(180)
def test_a_signal_while_the_first_nodes_name_is_not_known(tmp_path: Path) -> None:
    with a_second_node(tmp_path, "no-such-host.invalid", 29500) as process:
        until(lambda: hears(process.pid), 60)
        asked_to_stop(process, tmp_path)


@pytest.mark.timeout(180)
def test_a_signal_while_the_first_node_does_not_answer(tmp_path: Path) -> None:
    """The main thread waits inside torch's store then: no handler of Python's runs."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(100)
        with a_second_node(tmp_path, "127.0.0.1", silent.getsockname()[1]) as process:
            connection, _ = silent.accept()
            with connection:
                asked_to_stop(process, tmp_path)


@contextmanager
def forwarder(ends: Path, end: Callable[[], None]) -> Iterator[supervisor.Forwarder]:
    before = {number: signal.getsignal(number) for number in supervisor.HEARD}
    made = supervisor.Forwarder(ends, end)
    made.install()
    try:
        yield made
    finally:
        made.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_rank_whose_process_id_is_not_written_yet_is_told_later(tmp_path: Path) -> None:
    ended: list[str] = []
    (tmp_path / "0.pid").touch()
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as rank,
        forwarder(tmp_path, lambda: ended.append("end")) as it,
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: it.heard, SOON)
        time.sleep(0.3)
        assert rank.poll() is None
        (tmp_path / "0.pid").write_text(str(rank.pid))
        assert rank.wait(timeout=SOON) == -signal.SIGTERM
    assert ended == []


def test_signals_after_the_first_are_taken_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    (tmp_path / "0.pid").touch()
    with forwarder(tmp_path, lambda: None) as it:
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: it.heard, SOON)
        time.sleep(0.3)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            time.sleep(0.1)
    until(lambda: all(t.name != "signal-forwarder" for t in threading.enumerate()), SOON)
    assert said == []


def test_other_signals_and_its_own_end_are_no_reason_to_stop(tmp_path: Path) -> None:
    ended: list[str] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with forwarder(tmp_path, lambda: ended.append("end")) as it:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.3)
            assert not it.heard
        until(lambda: all(t.name != "signal-forwarder" for t in threading.enumerate()), SOON)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended == []
