"""Which view an output gets, and what becomes of it when its reader goes away."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path

import pytest

from finetune_cli import main as cli
from finetune_cli.run.command import open_view
from finetune_cli.run.lock import Lock
from finetune_cli.run.record import Metadata, Record, write_record
from finetune_cli.view import PlainView, RichView
from harness.simulation import UID, make_job


class Terminal(io.StringIO):
    """An output that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("term", "view"), [("dumb", PlainView), ("xterm", RichView)])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    term: str, view: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stdout", Terminal())
    found = open_view()
    found.close()
    assert type(found) is view


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a job that has begun."""
    record = Record(
        metadata=Metadata(name="tiny", uid=UID, creation_timestamp="2026-01-01T00:00:00+00:00"),
        spec={},
        resolved=make_job({}),
    )
    write_record(tmp_path / "tiny-0123abcd/status.json", record)
    changed(tmp_path / "tiny-0123abcd/status.json", 61)
    return tmp_path


def changed(path: Path, ago: float) -> None:
    """Have a file changed so many seconds ago."""
    path.touch()
    os.utime(path, (time.time() - ago, time.time() - ago))


def test_watching_ends_with_its_reader(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Lock(workspace, "tiny")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as unread, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", unread)
        patched.setattr("finetune_cli.watch.sleep", _never)
        code = cli.main(["watch", "tiny", "--workspace", str(workspace)])
    lock.release()
    assert code == 141


def _never(seconds: float) -> None:
    raise AssertionError("it waits for a job that nobody sees")


def test_a_job_that_nobody_works_on_is_not_waited_for(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune_cli.watch.sleep", lambda seconds: None)
    assert cli.main(["watch", "tiny", "--workspace", str(workspace)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"tiny  {workspace}/tiny-0123abcd",
        "no finetune run on this machine works on tiny: if none does on another, the same command as "
        "before goes on with it",
    ]


@pytest.mark.parametrize("name", ["status.json", "reports/progress.json"])
def test_a_job_of_another_machine_whose_lock_is_not_seen_is_watched(
    workspace: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = workspace / "tiny-0123abcd" / name
    file.parent.mkdir(exist_ok=True)
    changed(file, 50)
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 50:
            assert "no finetune run" not in capsys.readouterr().out
            changed(file, 61)

    monkeypatch.setattr("finetune_cli.watch.sleep", sleep)
    assert cli.main(["watch", "tiny", "--workspace", str(workspace)]) == 1
    assert 50 < looks < 60


def test_a_job_that_somebody_works_on_is_watched_until_it_is_left(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = Lock(workspace, "tiny")
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 50:
            assert "no finetune run" not in capsys.readouterr().out
            lock.release()

    monkeypatch.setattr("finetune_cli.watch.sleep", sleep)
    assert cli.main(["watch", "tiny", "--workspace", str(workspace)]) == 1
    assert "no finetune run on this machine works on tiny" in capsys.readouterr().out
    assert 50 < looks < 60


def test_looking_at_a_lock_does_not_take_it(workspace: Path) -> None:
    """Somebody who watches holds it for a moment; who runs the job waits that long."""
    import fcntl
    import threading

    with (workspace / ".tiny.lock").open("w") as watching:
        fcntl.flock(watching, fcntl.LOCK_SH)
        threading.Timer(0.05, lambda: fcntl.flock(watching, fcntl.LOCK_UN)).start()
        Lock(workspace, "tiny").release()
