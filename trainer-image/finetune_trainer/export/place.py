"""The folder beside the output's place in which it is built: made, given up, or not to be had."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_trainer.errors import StageError

_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def name_of(target: Path, uid: str) -> str:
    """Return the name of the folder that an output is built in."""
    return f".{target.name}.{uid[:8]}"


@contextmanager
def staged(target: Path, uid: str, uri: str) -> Iterator[Path]:
    """Make the folder that an output is built in; gone when the body raises.

    It may hold a whole model on a claim where nobody sees it, so it is not left for a next try
    that may never come. Raises ``StageError`` (10) where it may not be made.
    """
    staging = target.parent / name_of(target, uid)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        raise StageError(ExitCode.INVALID_CONFIG, _not_writable(uri, error)) from error
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def unwritable(target: Path, uid: str, uri: str) -> Problem | None:
    """Return the problem of an output that could not be written; None: it can, or nobody knows."""
    parent = target.parent
    try:
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        probe = parent / name_of(target, uid)
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        return _not_writable(uri, error) if error.errno in _REFUSED else None
    return None


def _not_writable(uri: str, error: OSError) -> Problem:
    """Return the problem of a folder that may not be written to."""
    reason = error.strerror or type(error).__name__
    return Problem(
        code="output-not-writable",
        message=f"user {os.geteuid()} may not write {uri}: {reason}"[:1024],
        fix="let this user or the group of the pods (fsGroup) write to the folder, or choose "
        "another spec.output.uri; then raise recovery.retryGeneration",
        field="spec.output.uri",
    )
