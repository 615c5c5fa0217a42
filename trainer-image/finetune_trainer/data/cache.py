"""Prepared data on disk: flat memory-mapped arrays, committed as a whole or not at all.

One folder a split. Documents are written in the order in which they are read; a sequence is a list
of documents, so that packing and repeated rows cost no second copy of the tokens:

- ``tokens.u32``, ``document_ends.i64``: ids of all documents, and where each ends;
- ``spans.i32``, ``span_ends.i64``: half-open token ranges that are trained, relative to their
  document;
- ``members.u32``, ``sequence_ends.i64``: documents of all sequences, and where each ends.

All numbers are little-endian. Everything is written once, from front to back.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from finetune_api import SCHEMA_VERSION
from finetune_api.checkpoint import FileEntry
from finetune_api.document import Digest, Document, canonical
from finetune_api.names import MANIFEST
from finetune_api.problem import Problem
from finetune_api.reports import DataReport
from finetune_api.resolved import Chosen

_FILES: dict[str, str] = {
    "tokens.u32": "<u4",
    "document_ends.i64": "<i8",
    "spans.i32": "<i4",
    "span_ends.i64": "<i8",
    "members.u32": "<u4",
    "sequence_ends.i64": "<i8",
}
_CHUNK = 1 << 20

Array = npt.NDArray[Any]


class PreparedManifest(Document):
    """``manifest.json`` beside the splits; prepared data without it does not exist."""

    schema_version: int = SCHEMA_VERSION
    fingerprint: Digest
    packing: bool
    max_length: int
    train: DataReport
    validation: DataReport | None = None
    warnings: tuple[Problem, ...] = ()
    """What encoding the rows had to say."""
    chosen: tuple[Chosen, ...] = ()
    files: tuple[FileEntry, ...]


def folder_of(prepared: Path, fingerprint: str) -> Path:
    """Return the folder of prepared data: the first 16 hex digits of its fingerprint."""
    return prepared / fingerprint.removeprefix("sha256:")[:16]


class _Column:
    """One array that is appended to, hashed on the way, and flushed at the end."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.path = path
        self._dtype = np.dtype(dtype)
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._pending: list[Array] = []
        self._pending_bytes = 0
        self._written = 0

    def append(self, values: Array) -> None:
        data = np.ascontiguousarray(values, dtype=self._dtype)
        self._pending.append(data)
        self._pending_bytes += data.nbytes
        if self._pending_bytes >= _CHUNK or len(self._pending) >= 4096:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            data = np.concatenate([part.reshape(-1) for part in self._pending]).tobytes()
            self._file.write(data)
            self._hash.update(data)
            self._written += len(data)
            self._pending, self._pending_bytes = [], 0

    def close(self, root: Path) -> FileEntry:
        self._flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return FileEntry(
            path=self.path.relative_to(root).as_posix(),
            size=self._written,
            sha256=self._hash.hexdigest(),
        )

    def abandon(self) -> None:
        self._file.close()


class SplitWriter:
    """Writes one split with bounded memory: only the length of each document is kept."""

    def __init__(self, folder: Path) -> None:
        """Make the folder, which must not exist yet."""
        folder.mkdir(parents=True)
        self._folder = folder
        self._columns = {name: _Column(folder / name, dtype) for name, dtype in _FILES.items()}
        self._lengths = _Growing()
        self._tokens = 0
        self._spans = 0

    def add(self, ids: Sequence[int] | Array, spans: Sequence[tuple[int, int]]) -> int:
        """Append one document and return its number, counted from 0.

        ``spans`` are half-open token ranges within the document.
        """
        tokens = np.asarray(ids, dtype=np.uint32)
        number = len(self._lengths)
        self._lengths.append(len(tokens))
        self._tokens += len(tokens)
        self._spans += len(spans)
        self._columns["tokens.u32"].append(tokens)
        self._columns["document_ends.i64"].append(np.asarray([self._tokens]))
        if spans:
            self._columns["spans.i32"].append(np.asarray(spans, dtype=np.int32))
        self._columns["span_ends.i64"].append(np.asarray([self._spans]))
        return number

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each document so far."""
        return self._lengths.array

    def finish(self, members: Array, ends: Array) -> list[FileEntry]:
        """Write the sequences; flush everything; return the files of this split.

        Sequence i consists of the documents ``members[ends[i-1]:ends[i]]``. Paths of the entries
        are relative to the folder above this split.
        """
        self._columns["members.u32"].append(members)
        self._columns["sequence_ends.i64"].append(ends)
        entries = [column.close(self._folder.parent) for column in self._columns.values()]
        _sync_folder(self._folder)
        return entries

    def abandon(self) -> None:
        """Close the files of a split that will not be finished."""
        for column in self._columns.values():
            column.abandon()


class _Growing:
    """An int32 array that doubles: 4 to 8 bytes a document."""

    def __init__(self) -> None:
        self._data = np.empty(1024, dtype=np.int32)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, value: int) -> None:
        if self._size == len(self._data):
            self._data = np.concatenate([self._data, np.empty_like(self._data)])
        self._data[self._size] = value
        self._size += 1

    @property
    def array(self) -> npt.NDArray[np.int32]:
        return self._data[: self._size]


class PreparedDataset:
    """One split of prepared data, memory mapped; imports no torch.

    An item holds ``input_ids`` (uint32 [n]), ``spans`` (int32 [k, 2], half-open token ranges that
    are trained), ``lengths`` (int32 [documents]) and ``sample_id``.
    """

    def __init__(self, folder: Path) -> None:
        """Map the files of a split; raises ``FileNotFoundError`` when it was never committed."""
        self.folder = Path(folder)
        self._map()

    def _map(self) -> None:
        if not (self.folder.parent / MANIFEST).is_file():
            raise FileNotFoundError(f"{self.folder.parent} holds no finished prepared data")
        (
            self._tokens,
            self._document_ends,
            self._spans,
            self._span_ends,
            self._members,
            self._sequence_ends,
        ) = (_mapped(self.folder / name, dtype) for name, dtype in _FILES.items())

    def __getstate__(self) -> dict[str, Any]:
        """A worker process maps the files itself."""
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder = state["folder"]
        self._map()

    def __len__(self) -> int:
        return len(self._sequence_ends)

    def documents(self, index: int) -> Array:
        """Return the numbers of the documents in a sequence."""
        return self._members[_range(self._sequence_ends, index)]

    def document(self, number: int) -> tuple[Array, Array]:
        """Return one document: its ids and its spans [k, 2]."""
        ends = self._span_ends
        start, stop = (int(ends[number - 1]) if number else 0), int(ends[number])
        return (
            self._tokens[_range(self._document_ends, number)],
            self._spans[2 * start : 2 * stop].reshape(-1, 2),
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sequence; negative indices and slices are not supported."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        parts = [self.document(int(number)) for number in self.documents(index)]
        lengths = np.asarray([len(ids) for ids, _ in parts], dtype=np.int32)
        starts = np.cumsum(lengths) - lengths
        return {
            "input_ids": np.concatenate([ids for ids, _ in parts]),
            "spans": np.concatenate(
                [spans + start for (_, spans), start in zip(parts, starts, strict=True)]
            ).astype(np.int32),
            "lengths": lengths,
            "sample_id": int(index),
        }

    def sequence_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every sequence, for sampling by length."""
        ends = np.asarray(self._document_ends)
        of_documents = np.diff(ends, prepend=0)[self._members]
        totals = np.concatenate([[0], np.cumsum(of_documents, dtype=np.int64)])
        boundaries = np.concatenate([[0], np.asarray(self._sequence_ends)])
        lengths: npt.NDArray[np.int64] = np.diff(totals[boundaries]).astype(np.int64)
        return lengths


def _mapped(path: Path, dtype: str) -> Array:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)  # the subclass is slow to index


def _range(ends: Array, index: int) -> slice:
    return slice(int(ends[index - 1]) if index else 0, int(ends[index]))


@contextlib.contextmanager
def locked(prepared: Path, fingerprint: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of one fingerprint; ``waiting`` is called once when another holds it.

    The lock is the kernel's (flock), so that it ends with the process that held it.
    """
    prepared.mkdir(parents=True, exist_ok=True)
    with _lock_file(folder_of(prepared, fingerprint)).open("a", encoding="utf-8") as handle:
        if not _taken(handle):
            waiting()
            while not _taken(handle):
                time.sleep(0.2)
        yield


def _lock_file(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _taken(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True


def verified(folder: Path, fingerprint: str) -> PreparedManifest | None:
    """Return the manifest when every file is there with the size and digest that it names."""
    try:
        manifest = PreparedManifest.model_validate_json((folder / MANIFEST).read_bytes())
        if manifest.fingerprint != fingerprint:
            return None
        for entry in manifest.files:
            path = folder / entry.path
            if path.stat().st_size != entry.size or _sha256(path) != entry.sha256:
                return None
    except (OSError, ValueError):
        return None
    return manifest


@contextlib.contextmanager
def staged(prepared: Path, fingerprint: str) -> Iterator[Path]:
    """Give an empty folder to write to; call ``commit`` on it, or it is removed.

    To be used under the lock: what earlier processes left half-written is removed here.
    """
    final = folder_of(prepared, fingerprint)
    folder = final.with_suffix(".partial")
    shutil.rmtree(folder, ignore_errors=True)
    _sweep(prepared)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(prepared: Path) -> None:
    """Remove what processes that were killed left of other fingerprints: nobody holds their lock."""
    for folder in prepared.glob("*.partial"):
        with _lock_file(folder).open("a", encoding="utf-8") as handle:
            if _taken(handle):
                shutil.rmtree(folder, ignore_errors=True)


def commit(folder: Path, final: Path, manifest: PreparedManifest) -> None:
    """Write the manifest last, flush, and give the folder its final name.

    A folder of that name that does not verify is kept until the new one is in its place.
    """
    path = folder / MANIFEST
    with path.open("wb") as handle:
        handle.write(json.dumps(json.loads(canonical(manifest.to_json())), indent=1).encode())
        handle.flush()
        os.fsync(handle.fileno())
    _sync_folder(folder)
    discarded = final.with_suffix(".discarded")
    if final.exists():
        shutil.rmtree(discarded, ignore_errors=True)
        final.rename(discarded)
    folder.rename(final)
    _sync_folder(final.parent)
    shutil.rmtree(discarded, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
