"""Old checkpoints are deleted in the background, once newer ones have proved themselves.

What is kept: the ``keep`` newest verified checkpoints along the lineage of the own claim, the
snapshot of the best evaluation up to each of them, and the newest snapshot. What is never touched:
the newest verified, and whatever belongs to another lineage. A deletion takes the manifest away
first, so that a half-deleted folder is no checkpoint.
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

Place = tuple[int, int]
"""A claim and a step."""


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


def needless(
    newest_first: Iterable[Place], checkpoints: Iterable[Place], usable: Callable[[Place], bool]
) -> tuple[Place, ...]:
    """Return the snapshots, as (claim, step), that nobody publishes any more.

    Along a lineage each snapshot is better than all before it. The run under way needs the newest,
    and whoever goes on from a checkpoint the newest up to there: those after it are not in its
    lineage. ``usable`` is asked where there are older ones that could take a damaged one's place.
    """
    snapshots = list(newest_first)
    needed: set[Place] = set()
    for limit in (None, *checkpoints):
        for place in snapshots:
            if limit is not None and place > limit:
                continue
            needed.add(place)
            if place == snapshots[-1] or usable(place):
                break
    return tuple(place for place in snapshots if place not in needed)


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
        self._start(newest, self.prune)

    def begin_snapshots(self, newest: CheckpointRef) -> None:
        """Start deleting snapshots alone, now that ``newest`` is committed; raises likewise."""
        self._start(newest, self.prune_snapshots)

    def finish(self) -> None:
        """Wait for the thread; raises ``StageError`` (21) when it found a newer claim."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._fenced is not None:
            raise self._fenced

    def prune(self) -> tuple[Path, ...]:
        """Delete what is superfluous, oldest first; returns what was deleted."""
        known = self._claims()
        places = list(verify.places(self.layout, known))
        folders = [self.layout.checkpoint(*place) for place in places]
        doomed = superfluous(folders, self.keep, self._usable)
        left = [place for place, at in zip(places, folders, strict=True) if at not in doomed]
        return self._delete(
            [*reversed(doomed), *self._needless(known, left), *self._abandoned()],
        )

    def prune_snapshots(self) -> tuple[Path, ...]:
        """Delete the snapshots that nobody needs, oldest first; returns what was deleted."""
        known = self._claims()
        return self._delete(self._needless(known, list(verify.places(self.layout, known))))

    def _needless(self, known: dict[int, Claim | None], checkpoints: list[Place]) -> list[Path]:
        found = needless(
            verify.snapshots(self.layout, known),
            checkpoints,
            lambda place: self._usable(self.layout.best(*place)),
        )
        return [self.layout.best(*place) for place in reversed(found)]

    def _delete(self, folders: list[Path]) -> tuple[Path, ...]:
        """Delete each; of those that cannot be deleted, raise the first once all were tried."""
        present = tuple(dict.fromkeys(folder for folder in folders if folder.is_dir()))
        failures: list[OSError] = []
        for folder in present:
            try:
                delete(self.layout, self.claim.sequence, folder)
            except OSError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return present

    def _start(self, newest: CheckpointRef, act: Callable[[], object]) -> None:
        self.finish()
        self._verified.add(newest.path)
        self._thread = threading.Thread(
            target=self._run, args=(act,), name="retention", daemon=True
        )
        self._thread.start()

    def _run(self, act: Callable[[], object]) -> None:
        try:
            act()
        except StageError as error:
            self._fenced = error
        except OSError as error:
            # Room that is not given back is no reason to stop training; the next save tries again.
            _log.warning("old checkpoints could not be deleted: %s", error)

    def _claims(self) -> dict[int, Claim | None]:
        known = claims.read_all(self.layout)
        lower = {number: claim for number, claim in known.items() if number < self.claim.sequence}
        return lower | {self.claim.sequence: self.claim}

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
