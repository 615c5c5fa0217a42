"""Rows of JSON Lines and JSON files, streamed: no file is ever in memory as a whole."""

from __future__ import annotations

import codecs
import difflib
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from finetune_api.problem import Problem, Refused
from finetune_api.source import parse_uri

SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
_UNREAD = (
    *(".parquet", ".arrow", ".feather", ".csv", ".tsv", ".xlsx"),
    *(".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".tar", ".tgz", ".7z"),
)
"""Names that hold rows more often than not; .txt and .md are left out: notes have such names."""
MAX_ROW_BYTES = 64 * 1024 * 1024
_CHUNK = 1 << 20
_BOM = codecs.BOM_UTF8
_LISTED = 12


@dataclass(frozen=True)
class DataFile:
    """One file of a source, and the name by which a user knows it."""

    path: Path
    shown: str


@dataclass(frozen=True)
class Located:
    """What a source names on disk."""

    files: tuple[DataFile, ...]
    unread: tuple[str, ...] = ()
    """Names in its folder that look like data and are not read."""


@dataclass(frozen=True)
class Row:
    """One JSON value and where it stands; ``problem`` is set where it could not be read."""

    file: str
    line: int
    value: Any = None
    problem: Problem | None = None
    end_of_file: bool = False
    """Nothing of the file can be read after this problem."""


def locate(uri: str, volumes: dict[str, str], field: str) -> Located:
    """Return the data files of a source, folders in sorted order.

    Raises ``Refused`` when there is none, with what lies nearby.
    """
    source = parse_uri(uri)
    if source.scheme != "pvc":
        raise _refused(
            "source-not-supported",
            f"rows of {uri} cannot be read yet",
            "copy the data to a claim and name it as pvc://claim/path",
            field,
        )
    if source.name not in volumes:
        known = ", ".join(sorted(volumes)) or "none"
        raise _refused(
            "claim-not-mounted",
            f"claim {source.name} is not mounted (mounted: {known})",
            f"with finetune run: --volume {source.name}=FOLDER",
            field,
        )
    root = Path(volumes[source.name])
    path = root / source.path if source.path else root
    if path.is_dir():
        found = _below(path)
        if not found.files:
            raise _refused(
                "no-data-files",
                f"{uri} holds no data file{_listing(path)}",
                "files must end in .jsonl or .json, or these with .gz",
                field,
            )
        return found
    if not path.exists():
        raise _missing(uri, root, path, field)
    if not path.name.lower().endswith(SUFFIXES):
        raise _refused(
            "unknown-file-type",
            f"{uri} is neither JSON Lines nor JSON by its name",
            "files must end in .jsonl or .json, or these with .gz",
            field,
        )
    return Located((DataFile(path, path.name),))


def _refused(code: str, message: str, fix: str, field: str) -> Refused:
    return Refused(Problem(code=code, message=message, fix=fix, field=field))


def _below(folder: Path) -> Located:
    files, unread = [], []
    for path in sorted(_walked(folder)):
        shown = path.relative_to(folder).as_posix()
        readable = path.name.lower().endswith(SUFFIXES)
        if readable and path.is_file():
            files.append(DataFile(path, shown))
        elif readable or path.name.lower().endswith(_UNREAD):
            unread.append(shown)
    return Located(tuple(files), tuple(unread))


def _walked(folder: Path) -> Iterator[Path]:
    """Yield all but hidden files below a folder; links are followed, no folder is read twice.

    Raises ``OSError`` where a folder cannot be read: what is in it would be missing unsaid.
    """
    seen: set[tuple[int, int]] = set()
    tops = [folder]
    for top in tops:  # linked folders come last, so that a real one keeps its name
        for here, folders, names in os.walk(top, onerror=_raised):
            stat = Path(here).stat()
            folders[:] = sorted(name for name in folders if not _is_hidden(name))
            if (stat.st_dev, stat.st_ino) in seen:
                folders.clear()
                continue
            seen.add((stat.st_dev, stat.st_ino))
            tops += [path for name in folders if (path := Path(here, name)).is_symlink()]
            yield from (Path(here, name) for name in names if not name.startswith("."))


def _is_hidden(name: str) -> bool:
    """Return whether a folder is none of the user's: lost+found of a volume is root's alone."""
    return name.startswith(".") or name == "lost+found"


def _raised(error: OSError) -> None:
    raise error


def _listing(folder: Path) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if p.name[0] != ".")
    more = ", ..." if len(names) > _LISTED else ""
    return f" (in it: {', '.join(names[:_LISTED]) or 'nothing'}{more})"


def _missing(uri: str, root: Path, path: Path, field: str) -> Refused:
    folder = path.parent
    while folder != root and not folder.is_dir():
        folder = folder.parent
    here = uri[: len(uri.rstrip("/")) - len(path.relative_to(folder).as_posix())].rstrip("/")
    if not folder.is_dir():
        return _refused("file-not-found", f"{uri} does not exist", "check the folder", field)
    wanted = path.relative_to(folder).parts[0]
    names = [p.name for p in folder.iterdir()]
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    fix = f"did you mean {here}/{close[0]}?" if close else "correct the path"
    return _refused("file-not-found", f"{uri} does not exist", fix + _listing(folder), field)


def rows(file: DataFile) -> Iterator[Row]:
    """Yield the rows of a file with their line, counted from 1; blank lines are none.

    A file that starts with ``[`` is one JSON array, any other has one value a line. What cannot be
    read is yielded as a row with a problem.
    """
    line = 0
    try:
        with _opened(file.path) as handle:
            head = handle.peek(_CHUNK)[:_CHUNK]  # type: ignore[attr-defined]
            if head.removeprefix(_BOM).lstrip()[:1] == b"[":
                yield from _array_rows(file, handle)
                return
            for line, raw in _lines(handle):
                row = _line_row(file, line, raw)
                if row:
                    yield row
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        yield _bad(
            file,
            line + 1,
            "unreadable-file",
            f"cannot be read: {reason}",
            "copy the file again",
            end=True,
        )


def _opened(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _bad(file: DataFile, line: int, code: str, message: str, fix: str, *, end: bool = False) -> Row:
    problem = Problem(code=code, message=message, fix=fix, file=file.shown, line=line)
    return Row(file.shown, line, problem=problem, end_of_file=end)


def _lines(handle: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yield numbered lines; None stands for one that is longer than a row may be."""
    number = 0
    while raw := handle.readline(MAX_ROW_BYTES):
        number += 1
        if len(raw) < MAX_ROW_BYTES or raw.endswith(b"\n"):
            yield number, raw
            continue
        while (rest := handle.readline(_CHUNK)) and not rest.endswith(b"\n"):
            pass
        yield number, None


def _line_row(file: DataFile, line: int, raw: bytes | None) -> Row | None:
    if raw is None:
        return _too_long(file, line)
    if line == 1:
        raw = raw.removeprefix(_BOM)
    if not raw.strip():
        return None
    try:
        return Row(file.shown, line, json.loads(raw.rstrip().decode()))
    except UnicodeDecodeError as error:
        return _not_utf8(file, line, error.start + 1)
    except (ValueError, RecursionError) as error:
        return _bad(file, line, "invalid-json", f"not valid JSON: {_why(error)}", _JSON_FIX)


_JSON_FIX = "correct the row, or set dataset.invalidRows: Drop with maxInvalidFraction: 0.01"


def _too_long(file: DataFile, line: int, *, end: bool = False) -> Row:
    limit = MAX_ROW_BYTES // 2**20
    return _bad(
        file, line, "row-too-large", f"a row of more than {limit} MiB", "split the row", end=end
    )


def _not_utf8(file: DataFile, line: int, byte: int, *, end: bool = False) -> Row:
    return _bad(
        file,
        line,
        "invalid-utf8",
        f"not UTF-8 at byte {byte} of the row",
        "save the file as UTF-8",
        end=end,
    )


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{_lowered(error.msg)} at column {error.colno}"
    return str(error)


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def _array_rows(file: DataFile, handle: IO[bytes]) -> Iterator[Row]:
    """Yield the items of one JSON array; what follows a broken item cannot be read."""
    text = _Text(handle)
    decoder = json.JSONDecoder()
    try:
        text.skip_space()
        text.advance(1)  # the opening bracket
        expect_value = False
        while (char := text.skip_space()) != "]" or expect_value:
            if not char:
                message = "not valid JSON: the array is not closed"
                yield _bad(file, text.line, "invalid-json", message, "add the closing ]", end=True)
                return
            line = text.line
            value, length = text.decode(decoder)
            text.advance(length)
            yield Row(file.shown, line, value)
            expect_value = text.skip_space() == ","
            if expect_value:
                text.advance(1)
            elif text.skip_space() not in {"]", ""}:
                message = "not valid JSON: expecting ',' between two rows"
                yield _bad(file, text.line, "invalid-json", message, "add the comma", end=True)
                return
        text.advance(1)  # the closing bracket
        if text.skip_space():
            message = "not valid JSON: something follows the closing ]"
            fix = "make it one array, or write one row a line without brackets"
            yield _bad(file, text.line, "invalid-json", message, fix, end=True)
    except UnicodeDecodeError as error:
        yield _not_utf8(file, text.line, error.start + 1, end=True)
    except _TooLong:
        yield _too_long(file, text.line, end=True)
    except (ValueError, RecursionError) as error:
        why = _lowered(error.msg) if isinstance(error, json.JSONDecodeError) else _why(error)
        fix = "correct the row; nothing after it can be read"
        yield _bad(file, text.line, "invalid-json", f"not valid JSON: {why}", fix, end=True)


class _TooLong(Exception):
    pass


class _Text:
    """A window over a text file that knows its line."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._buffer = ""
        self._at = 0
        self._ended = False
        self.line = 1

    def _more(self, size: int = _CHUNK) -> bool:
        if self._ended:
            return False
        raw = self._handle.read(size)
        self._ended = not raw
        self._buffer = self._buffer[self._at :] + self._decoder.decode(raw, final=not raw)
        self._at = 0
        return True

    def advance(self, count: int) -> None:
        stop = self._at + count
        self.line += self._buffer.count("\n", self._at, stop)
        self._at = stop

    def skip_space(self) -> str:
        """Skip white space and return the next character, empty at the end."""
        while True:
            start = self._at
            while self._at < len(self._buffer) and self._buffer[self._at] in " \t\r\n":
                self._at += 1
            self.line += self._buffer.count("\n", start, self._at)
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def decode(self, decoder: json.JSONDecoder) -> tuple[Any, int]:
        """Return the value that starts here and its length, reading on while it is incomplete."""
        while True:
            try:
                value, end = decoder.raw_decode(self._buffer, self._at)
                if end < len(self._buffer) or self._ended:
                    return value, end - self._at
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._buffer) - 16 or error.msg.startswith("Unterminated")
                if self._ended or not cut:
                    self.line += self._buffer.count("\n", self._at, error.pos)
                    raise
            held = len(self._buffer) - self._at
            if held > MAX_ROW_BYTES:
                raise _TooLong
            self._more(max(_CHUNK, held))
