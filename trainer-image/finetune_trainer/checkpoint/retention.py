"""Old checkpoints are deleted in the background, once newer ones have proved themselves.

What is kept: the ``keep`` newest verified checkpoints along the lineage of the own claim. What is
never touched: the newest verified, best snapshots of others, and whatever belongs to another
lineage. A deletion takes the manifest away first, so that a half-deleted folder is no checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from finetune_api.checkpoint import CheckpointRef, Claim
from finetune_api.names import MANIFEST, Layout
from finetune_trainer.checkpoint import claim as claims
from finetune_trainer.checkpoint import durable, verify
from finetune_trainer.errors import StageError

_log = logging.getLogger(__name__)


def superfluous(
    newest_first: Iterable[Path], keep: int, usable: Callable[[Path], bool]
) -> tuple[Path, ...]:
    """Return what comes after the ``keep``-th usable one; ``usable`` is asked no further.

    With fewer usable ones, nothing is superfluous.
    """
    left = keep
    out: list[Path] = []
    for folder in newest_first:
        if left == 0:
            out.append(folder)
        elif usable(folder):
            left -= 1
    return tuple(out)


def delete(layout: Layout, sequence: int, folder: Path) -> None:
    """Delete a folder of checkpoints; raises ``StageError`` (21), changing nothing, when fenced."""
    claims.fence(layout, sequence)
    with contextlib.suppress(FileNotFoundError):
        (folder / MANIFEST).rename(folder / f"{MANIFEST}.deleted")
    durable.flush_folder(folder)
    shutil.rmtree(folder)


class Retention:
    """The background deletion of one claim's rank 0; at most one thread at a time."""

    def __init__(self, layout: Layout, claim: Claim, keep: int) -> None:
        """Hold the claim; touches nothing."""
        self.layout, self.claim, self.keep = layout, claim, keep
        self._verified: set[str] = set()
        self._thread: threading.Thread | None = None
        self._fenced: StageError | None = None

    def begin(self, newest: CheckpointRef) -> None:
        """Start deleting, now that ``newest`` is committed; raises as ``finish`` does."""
        self.finish()
        self._verified.add(newest.path)
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the thread; raises ``StageError`` (21) when it found a newer claim."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._fenced is not None:
            raise self._fenced

    def prune(self) -> tuple[Path, ...]:
        """Delete what is superfluous, oldest first; returns what was deleted."""
        lineage = [self.layout.checkpoint(*place) for place in self._lineage()]
        doomed = superfluous(lineage, self.keep, self._usable)
        old = [folder for folder in reversed(doomed) if folder.is_dir()]
        doomed = tuple(dict.fromkeys(old + self._abandoned()))
        for folder in doomed:
            delete(self.layout, self.claim.sequence, folder)
        return doomed

    def _run(self) -> None:
        try:
            self.prune()
        except StageError as error:
            self._fenced = error
        except OSError as error:
            # Room that is not given back is no reason to stop training; the next save tries again.
            _log.warning("old checkpoints could not be deleted: %s", error)

    def _lineage(self) -> list[tuple[int, int]]:
        known = claims.read_all(self.layout)
        own = {number: claim for number, claim in known.items() if number < self.claim.sequence}
        return list(verify.places(self.layout, own | {self.claim.sequence: self.claim}))

    def _usable(self, folder: Path) -> bool:
        """Read a checkpoint once; what this process wrote and hashed is not read again."""
        path = folder.relative_to(self.layout.root).as_posix()
        try:
            if path in self._verified:
                verify.check_sizes(folder, verify.read_manifest(folder))
            else:
                verify.verified(folder, self.claim.job_uid)
        except verify.Unusable:
            return False
        self._verified.add(path)
        return True

    def _abandoned(self) -> list[Path]:
        """Folders without a manifest that lower claims left: saves that can no longer be finished."""
        return [
            folder
            for sequence in claims.sequences(self.layout)
            if sequence < self.claim.sequence
            for folder in sorted((self.layout.checkpoints / str(sequence)).glob("*-*"))
            if folder.is_dir() and not (folder / MANIFEST).exists()
        ]
