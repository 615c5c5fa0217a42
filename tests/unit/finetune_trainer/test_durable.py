"""What a power loss must not take away."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_trainer.checkpoint import durable


def test_a_new_folder_has_its_name_flushed_and_those_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    flush = durable.flush_folder

    def heard(folder: Path) -> None:
        flush(folder)
        flushed.append(folder.relative_to(tmp_path).as_posix())

    monkeypatch.setattr(durable, "flush_folder", heard)
    durable.make_folder(tmp_path / "checkpoints" / "1" / "step-10")
    assert (tmp_path / "checkpoints" / "1" / "step-10").is_dir()
    assert flushed == [".", "checkpoints", "checkpoints/1"]
    durable.make_folder(tmp_path / "checkpoints" / "1" / "step-20")
    assert flushed[3:] == ["checkpoints/1"]
    durable.make_folder(tmp_path / "checkpoints" / "1" / "step-20")
    assert flushed[4:] == []
