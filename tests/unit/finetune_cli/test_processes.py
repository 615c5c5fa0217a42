"""A process under its keeper, and what is left of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from finetune_cli.run.processes import Gate, alive, end_of, has_started, kill, prepare_process


def gate(folder: Path, script: str) -> Gate:
    """Return the keeper of a shell script whose temporary files lie under the folder."""
    (folder / "tmp").mkdir()
    return prepare_process(
        "one",
        0,
        ["/bin/sh", "-c", script],
        files=folder / "reports/one",
        log=folder / "one.log",
        environment={**os.environ, "TMPDIR": str(folder / "tmp")},
        memory_events=None,
    )


@pytest.mark.parametrize(("rest", "code"), [("exit 3", 3), ("touch waits; sleep 60", 137)])
def test_temporary_files_go_with_their_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    one = gate(
        tmp_path,
        f'mkdir "$TMPDIR/torchelastic_x" && touch "$TMPDIR/torchelastic_x/log";'
        f" ls -d tmp/*/torchelastic_x > seen; {rest}",
    )
    one.open()
    until = time.monotonic() + 30
    while alive(one.kept):
        assert time.monotonic() < until
        if (tmp_path / "waits").is_file():
            kill(one.kept)
        time.sleep(0.01)
    assert has_started(one.kept)
    found = end_of(one.kept)
    assert found is not None
    assert found.exit_code == code
    assert (tmp_path / "seen").read_text().startswith("tmp/finetune-")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_folder_that_cannot_be_made_does_not_hinder_the_process(tmp_path: Path) -> None:
    one = gate(tmp_path, "exit 3")
    (tmp_path / "tmp").rmdir()
    one.open()
    until = time.monotonic() + 30
    while alive(one.kept):
        assert time.monotonic() < until
        time.sleep(0.01)
    found = end_of(one.kept)
    assert found is not None
    assert found.exit_code == 3
