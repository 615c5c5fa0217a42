"""Rows of chats, and their preparation in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_api.names import Layout
from finetune_api.reports import PrepareReport
from finetune_api.resolved import StageConfig
from finetune_trainer import prepare
from finetune_trainer.data import cache
from finetune_trainer.errors import StageError
from harness.stage_config import make_config, write_rows


def chat(*turns: str, system: str | None = None) -> dict[str, Any]:
    """Return a row whose turns are the user's and the assistant's, one after the other."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [
        {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)
    ]
    return {"messages": messages}


def chats(count: int) -> list[dict[str, Any]]:
    """Return so many rows, each another."""
    return [chat(f"What is your name? {i}", f"I am Otto {i}.") for i in range(count)]


def prepared(
    root: Path, rows: list[Any], spec: dict[str, Any] | None = None
) -> tuple[StageConfig, PrepareReport]:
    """Prepare rows; returns the configuration and the report."""
    write_rows(root / "volumes" / "datasets" / "train.jsonl", rows)
    config = make_config(root, "prepare", spec)
    return config, prepare.run(config)


def splits(config: StageConfig, report: PrepareReport) -> tuple[Path, cache.PreparedDataset]:
    """Return the folder of what was prepared, and the sequences to train on."""
    assert report.choices is not None
    folder = cache.folder_of(
        Layout(Path(config.mounts.workspace)).prepared, report.choices.fingerprint
    )
    return folder, cache.PreparedDataset(folder / "train")


def refused(
    root: Path, rows: list[Any], spec: dict[str, Any] | None = None
) -> tuple[int, PrepareReport]:
    """Return exit status and report of a preparation that ends with problems."""
    try:
        prepared(root, rows, spec)
    except StageError as error:
        ending = error
    else:
        raise AssertionError("nothing was refused")
    text = (root / "workspace" / "reports" / "prepare.json").read_text()
    report = PrepareReport.model_validate_json(text)
    assert report.choices is None
    assert [p.code for p in report.problems] == [p.code for p in ending.problems]
    return int(ending.exit_code), report
