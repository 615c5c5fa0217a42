"""``prepare`` killed while it writes, and two of them at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from finetune_trainer import prepare
from finetune_trainer.data import cache
from harness.chat_rows import chats
from harness.stage_config import make_config, write_rows


def _stalled(config_json: str, reached: str) -> None:
    """Prepare, but stop for good in the middle of writing the tokens."""
    from finetune_api.resolved import StageConfig
    from finetune_trainer.data.cache import SplitWriter

    add = SplitWriter.add

    def slow(self, ids, spans):
        if len(self.lengths) == 40:
            for column in self._columns.values():
                column._flush()
                column._file.flush()
            Path(reached).touch()
            time.sleep(600)
        return add(self, ids, spans)

    SplitWriter.add = slow
    prepare.run(StageConfig.model_validate_json(config_json))


def _start_stalled(config, reached: Path) -> multiprocessing.Process:
    context = multiprocessing.get_context("fork")
    process = context.Process(
        target=_stalled, args=(json.dumps(config.to_json()), str(reached)), daemon=True
    )
    process.start()
    deadline = time.monotonic() + 120
    while not reached.exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_killed_while_writing_the_next_one_starts_clean(root):
    write_rows(root / "volumes" / "datasets" / "train.jsonl", chats(60))
    config = make_config(root, "prepare")
    process = _start_stalled(config, root / "reached")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    folder = root / "workspace" / "prepared"
    (partial,) = [path for path in folder.iterdir() if path.is_dir()]
    assert partial.suffix == ".partial"
    assert (partial / "train" / "tokens.u32").stat().st_size > 0
    with pytest.raises(FileNotFoundError):
        cache.PreparedDataset(partial / "train")
    report = prepare.run(config)
    assert report.cached is False
    folders = [path for path in folder.iterdir() if path.is_dir()]
    assert folders == [cache.folder_of(folder, report.choices.fingerprint)]
    assert cache.verified(folders[0], report.choices.fingerprint) is not None
    assert len(cache.PreparedDataset(folders[0] / "train")) == 60


def test_what_a_killed_process_left_of_other_data_is_removed_too(root):
    write_rows(root / "volumes" / "datasets" / "train.jsonl", chats(60))
    process = _start_stalled(make_config(root, "prepare"), root / "reached")
    folder = root / "workspace" / "prepared"
    live = prepare.run(make_config(root, "prepare", {"training": {"seed": 1}}))
    assert len(list(folder.glob("*.partial"))) == 1  # its process still holds its lock
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    other = prepare.run(make_config(root, "prepare", {"training": {"seed": 2}}))
    assert sorted(path for path in folder.iterdir() if path.is_dir()) == sorted(
        cache.folder_of(folder, report.choices.fingerprint) for report in (live, other)
    )


def test_two_at_once_the_second_waits_and_uses_the_first(root):
    fingerprint = "sha256:" + "a" * 64
    told: list[str] = []
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()

    def hold() -> None:
        with cache.locked(root / "prepared", fingerprint, lambda: None):
            held.set()
            done.wait(60)

    process = context.Process(target=hold, daemon=True)
    process.start()
    assert held.wait(60)

    def waiting() -> None:
        told.append("waiting")
        done.set()

    with cache.locked(root / "prepared", fingerprint, waiting):
        process.join(60)
        assert process.exitcode == 0
    assert told == ["waiting"]
