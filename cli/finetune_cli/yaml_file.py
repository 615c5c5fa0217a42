"""Reading a file as kubectl reads it, with the line and column of everything in it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.problem import Problem, Refused
from finetune_cli import yaml_scalar
from finetune_operator.resolve.paths import path_text

STDIN = "-"
MOST_BYTES = 3 * 1024 * 1024
"""Above what the API server takes."""
_MOST_VALUES = 200_000
_DEEPEST = 64
_LAST_PART = re.compile(r"(\[[^\]]*\]|\.[^.\[\]]+)$")

Place = tuple[int, int]
"""Line and column, counted from 1."""

SHORTEST = (
    "apiVersion: finetune.dev/v1alpha1, kind: FineTuneJob, metadata: {name: ...}, "
    "spec: {model: {uri: ...}, dataset: {train: [{uri: ...}]}, method: {lora: {}}}"
)


@dataclass(frozen=True)
class YamlDocument:
    """One document of a file: its data, and the place of each name and list item in it."""

    file: str
    data: Any
    places: dict[str, Place] = field(default_factory=dict)
    start: Place = (1, 1)

    def place(self, path: str) -> Place:
        """Return where a field stands, or what is nearest around it when it is absent."""
        while path:
            if path in self.places:
                return self.places[path]
            shorter = _LAST_PART.sub("", path)
            path = shorter if shorter != path else ""
        return self.start

    def located(self, problem: Problem) -> Problem:
        """Return the problem with file, line and column."""
        line, column = self.place(problem.field or "")
        return problem.model_copy(update={"file": self.file, "line": line, "column": column})


def read(path: str) -> list[YamlDocument]:
    """Return the documents of a file, the empty ones left out; ``-`` is the standard input.

    Raises:
        Refused: with file, line and column, whatever is wrong.
    """
    name = "stdin" if path == STDIN else path
    documents = parse(_text(path, name), name)
    if not documents:
        raise _unreadable("empty-file", name, "the file is empty", f"write a job: {SHORTEST}")
    return documents


def parse(text: str, name: str) -> list[YamlDocument]:
    """Return the documents of a text; ``name`` stands for it in what is said.

    Raises ``Refused`` as ``read`` does.
    """
    try:
        return list(_documents(text, name))
    except _Mistake as mistake:
        raise Refused(mistake.problem(name)) from None


def _text(path: str, name: str) -> str:
    """Return the text of a file."""
    try:
        if path == STDIN:
            raw = b"" if sys.stdin is None else sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with Path(path).open("rb") as handle:
                raw = handle.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise _unreadable(
            "file-not-found", name, "there is no such file", "check the path"
        ) from None
    except IsADirectoryError:
        inside = sorted(one.name for one in Path(path).glob("*.y*ml"))
        fix = f"name one file: {Path(path) / inside[0]}" if inside else "name a file"
        raise _unreadable("is-a-folder", name, "this is a folder, not a file", fix) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        message = f"the file cannot be read: {reason}"
        raise _unreadable("file-unreadable", name, message, "check the path and rights") from None
    if len(raw) > MOST_BYTES:
        message = f"the file is larger than {MOST_BYTES // 1024**2} MiB"
        raise _unreadable("file-too-large", name, message, "name a FineTuneJob file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        message = "this is not a text file in UTF-8"
        raise _unreadable("not-text", name, message, "name a FineTuneJob file in YAML or JSON")
    return text


def _unreadable(code: str, name: str, message: str, fix: str) -> Refused:
    """Return the refusal of a file that has no lines to speak of."""
    return Refused(Problem(code=code, file=name, message=message, fix=fix))


class _Mistake(Exception):
    """Something that is wrong at one place of the file."""

    def __init__(self, code: str, message: str, fix: str, place: Place) -> None:
        super().__init__(message)
        self.code, self.message, self.fix, self.place = code, message, fix, place

    def problem(self, name: str) -> Problem:
        line, column = self.place
        return Problem(
            code=self.code,
            message=self.message,
            fix=self.fix,
            file=name,
            line=line,
            column=column,
        )


def _documents(text: str, name: str) -> Iterator[YamlDocument]:
    """Yield the documents of a text."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if text.lstrip().startswith("{"):
        text = text.replace("\t", " ")  # in JSON a tab only ever stands between values
    try:
        events = _Events(YAML(typ="safe", pure=True).parse(text))
        while events.more():
            builder = _Builder(events)
            document = builder.document()
            if document is not None:
                data, start = document
                yield YamlDocument(name, data, builder.places, start)
    except MarkedYAMLError as error:
        raise _syntax(error, text) from None
    except YAMLError as error:
        # What YAML does not allow as a character at all (control characters).
        at = text[: getattr(error, "position", 0)]
        place = (at.count("\n") + 1, len(at) - (at.rfind("\n") + 1) + 1)
        raise _Mistake(
            "yaml-syntax",
            "a control character, which YAML does not allow",
            "remove it",
            place,
        ) from None


def _syntax(error: Any, text: str) -> _Mistake:
    """Return what is wrong with the YAML itself."""
    mark = error.problem_mark or error.context_mark
    place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    lines = text.split("\n")
    line = lines[place[0] - 1] if place[0] <= len(lines) else ""
    if "\t" in line[: place[1]]:
        at = (place[0], line.index("\t") + 1)
        return _Mistake(
            "yaml-tab", "a tab; YAML is indented with spaces", "replace it by spaces", at
        )
    said = " ".join(part for part in (error.context, error.problem) if part)
    fix = "check the indentation, quotes and brackets here and on the line before"
    if "mapping values are not allowed" in said:
        fix = "check the indentation; quote a value that contains ': '"
    elif "expected ',' or" in said or "expected the node content" in said:
        fix = "check brackets and commas; { and [ have to be closed"
    elif "undefined alias" in said or "found duplicate anchor" in said:
        fix = "name an anchor that stands above"
    elif "cannot start any token" in said:
        fix = "quote the value"
    return _Mistake("yaml-syntax", f"not valid YAML: {said}", fix, place)


class _Events:
    """The parser's events with one of look-ahead."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._next: Any = None
        self.take()  # the start of the stream

    def take(self) -> Any:
        taken, self._next = self._next, next(self._events, None)
        return taken

    def peek(self) -> str:
        return type(self._next).__name__ if self._next is not None else "StreamEndEvent"

    def more(self) -> bool:
        """Pass over the start of the stream; tell whether a document follows."""
        while self.peek() == "StreamStartEvent":
            self.take()
        return self.peek() != "StreamEndEvent"


class _Builder:
    """Builds the data of one document."""

    def __init__(self, events: _Events) -> None:
        self.events = events
        self.places: dict[str, Place] = {}
        self.anchors: dict[str, Any] = {}
        self.values = 0

    def document(self) -> tuple[Any, Place] | None:
        """Return data and place of the document, None where it is empty."""
        self.events.take()
        start = _place(self.events._next)
        data = self.value((), 0)
        self.events.take()
        return None if data is None else (data, start)

    def value(self, path: tuple[str | int, ...], depth: int) -> Any:
        """Return the value that begins with the next event."""
        event = self.events.take()
        place = _place(event)
        kind = type(event).__name__
        self.count(1, place)
        if depth > _DEEPEST:
            raise _Mistake(
                "too-deep", f"nested deeper than {_DEEPEST} levels", "check the brackets", place
            )
        if kind == "AliasEvent":
            if event.anchor not in self.anchors:
                message = f"the alias *{event.anchor} names nothing that stands above"
                raise _Mistake(
                    "yaml-alias", message, f"add &{event.anchor} to a value above", place
                )
            self.count(_size(self.anchors[event.anchor]), place)
            return self.anchors[event.anchor]
        if kind == "ScalarEvent":
            data = self.scalar(event, place)
        elif kind == "SequenceStartEvent":
            data = self.sequence(path, depth)
        else:
            data = self.mapping(path, depth)
        if event.anchor:
            self.anchors[event.anchor] = data
        return data

    def count(self, more: int, place: Place) -> None:
        """Stop before aliases of aliases fill the memory."""
        self.values += more
        if self.values > _MOST_VALUES:
            message = f"more than {_MOST_VALUES} values"
            raise _Mistake("file-too-large", message, "repeat fewer anchors", place)

    def scalar(self, event: Any, place: Place) -> Any:
        """Return the value of a scalar."""
        tag = str(event.tag) if event.tag else ""
        try:
            if tag and tag != "!":
                return yaml_scalar.tagged(tag, event.value)
        except ValueError as error:
            raise _Mistake("yaml-tag", str(error), "leave the tag out", place) from None
        if event.style or tag:
            return event.value
        value = yaml_scalar.plain(event.value)
        if isinstance(value, float) and value - value != 0:
            message = f"{event.value} is no number in JSON"
            raise _Mistake("not-finite", message, "write a finite number", place)
        return value

    def sequence(self, path: tuple[str | int, ...], depth: int) -> list[Any]:
        """Return a list; its items are known by their own place."""
        items: list[Any] = []
        while self.events.peek() != "SequenceEndEvent":
            here = (*path, len(items))
            self.places[path_text(here)] = _place(self.events._next)
            items.append(self.value(here, depth + 1))
        self.events.take()
        return items

    def mapping(self, path: tuple[str | int, ...], depth: int) -> dict[str, Any]:
        """Return a mapping; its values are known by the place of their name."""
        found: dict[str, Any] = {}
        merged: list[tuple[Any, Place]] = []
        while self.events.peek() != "MappingEndEvent":
            event = self.events._next
            place = _place(event)
            if type(event).__name__ == "ScalarEvent" and event.value == "<<" and not event.style:
                self.events.take()
                merged.append((self.value((*path, "<<"), depth + 1), place))
                continue
            name = self.name(path, place, depth)
            here = (*path, name)
            if name in found:
                before = self.places[path_text(here)][0]
                raise _Mistake(
                    "duplicate-key",
                    f"{path_text(here)} is written twice, first on line {before}",
                    "keep one of the two",
                    place,
                )
            self.places[path_text(here)] = place
            found[name] = self.value(here, depth + 1)
        self.events.take()
        for value, place in merged:
            for one in value if isinstance(value, list) else [value]:
                if not isinstance(one, dict):
                    raise _Mistake("yaml-alias", "<< needs a mapping", "name an anchor", place)
                found = {**one, **found}
        return found

    def name(self, path: tuple[str | int, ...], place: Place, depth: int) -> str:
        """Return the next name of a mapping as JSON has it."""
        value = self.value((*path, "?"), depth + 1)
        try:
            return yaml_scalar.key_text(value)
        except ValueError as error:
            raise _Mistake("yaml-key", str(error), "write a name before ':'", place) from None


def _place(event: Any) -> Place:
    """Return where an event begins."""
    return (event.start_mark.line + 1, event.start_mark.column + 1)


def _size(data: Any) -> int:
    """Return how many values data holds."""
    if isinstance(data, dict):
        return 1 + sum(_size(value) for value in data.values())
    if isinstance(data, list):
        return 1 + sum(_size(value) for value in data)
    return 1
