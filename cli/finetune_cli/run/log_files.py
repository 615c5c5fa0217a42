"""The files into which the processes of a job of this machine print, and which of them is meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import cast, get_args

from finetune_api.resolved import Stage

_STAGES: tuple[Stage, ...] = get_args(Stage)
# Beside them the trainer leaves its tracebacks: train-ATTEMPT-RANK.log, prepare-0.log.
_NAME = re.compile(rf"({'|'.join(_STAGES)})-([1-9][0-9]*)(?:-node-([0-9]+))?\.log")


@dataclass(frozen=True)
class LogFile:
    """What one node's process of a try of a stage has printed."""

    path: Path
    stage: Stage
    number: int
    node: int

    @property
    def run(self) -> tuple[int, int]:
        """Stage and number, in the order in which they come."""
        return _STAGES.index(self.stage), self.number


def log_path(folder: Path, stage: Stage, number: int, node: int) -> Path:
    """Return the file of a node's process."""
    return folder / (f"{stage}-{number}-node-{node}.log" if node else f"{stage}-{number}.log")


def runs(
    folder: Path, stage: str | None = None, number: int | None = None
) -> list[tuple[LogFile, ...]]:
    """Return the files of each try of a stage by node, that which printed last at the end.

    Their time decides: a job that is tried again counts the tries of a stage from 1 anew.
    """
    fitting = [
        file
        for file in _files(folder)
        if stage in (None, file.stage) and number in (None, file.number)
    ]
    fitting.sort(key=lambda file: (file.run, file.node))
    found = [tuple(files) for _, files in groupby(fitting, key=lambda file: file.run)]
    found.sort(key=lambda files: max(file.path.stat().st_mtime_ns for file in files))
    return found


def _files(folder: Path) -> Iterator[LogFile]:
    for path in folder.glob("*.log"):
        named = _NAME.fullmatch(path.name)
        if named is not None:
            stage = cast(Stage, named[1])
            yield LogFile(path, stage, int(named[2]), int(named[3] or 0))
