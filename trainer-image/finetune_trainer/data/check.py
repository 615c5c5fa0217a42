"""Every row is looked at before anything is tokenised: counts by code, first offenders by line."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from finetune_api.job.dataset import DataSource
from finetune_api.problem import Problem, Refused
from finetune_trainer.data.formats import (
    BadRow,
    Conversation,
    Example,
    LossOn,
    Pair,
    Reader,
    reader_for,
    unknown_column,
)
from finetune_trainer.data.read import DataFile, Row, rows

MAX_LISTED = 10
"""Offenders that one problem names."""
DROP_FIX = "set dataset.invalidRows: Drop with maxInvalidFraction: 0.01"


@dataclass(frozen=True)
class Source:
    """One entry of the dataset, found on disk."""

    field: str
    spec: DataSource
    files: tuple[DataFile, ...]


@dataclass(frozen=True)
class Checked:
    """A row that can be used."""

    file: str
    line: int
    example: Example
    loss_on: LossOn


@dataclass
class Findings:
    """Problems of rows, gathered by code and file so that a million of them stay a few lines."""

    found: dict[tuple[str, str], Problem] = field(default_factory=dict)
    fatal: list[Problem] = field(default_factory=list)
    """Problems that no dropping of rows can mend."""
    rows: int = 0
    """Rows with a problem."""

    def add(self, problem: Problem, *, fatal: bool = False) -> None:
        """Count one row's problem."""
        if fatal:
            self.fatal.append(problem)
            return
        self.rows += 1
        key = (problem.code, problem.file or "")
        first = self.found.get(key)
        lines = (problem.line,) if problem.line else ()
        if first is None:
            self.found[key] = problem.model_copy(update={"rows": lines})
        else:
            listed = first.rows + lines if len(first.rows) < MAX_LISTED else first.rows
            self.found[key] = first.model_copy(update={"rows": listed, "count": first.count + 1})

    def problems(self, severity: str = "error") -> list[Problem]:
        """Return one problem a code and file, the most frequent first; texts name the rows."""
        worst = sorted(self.found.values(), key=lambda p: (-p.count, p.file or "", p.line or 0))
        listed = [problem.model_copy(update={"severity": severity}) for problem in worst]
        return [*self.fatal, *map(_with_rows, listed)]


def _with_rows(problem: Problem) -> Problem:
    if problem.count == 1:
        return problem
    lines = ", ".join(map(str, problem.rows))
    more = ", ..." if problem.count > len(problem.rows) else ""
    message = f"{problem.message} ({problem.count:,} rows: {lines}{more})"
    return problem.model_copy(update={"message": message[:1024]})


@dataclass(frozen=True)
class Settings:
    """What of the job decides whether a row is valid."""

    loss_on: LossOn | None
    stanford: bool
    system_prompt: str | None


@dataclass
class Scan:
    """What the first pass over a split found: 8 bytes a valid row are kept."""

    rows: int = 0
    findings: Findings = field(default_factory=Findings)
    readers: list[Reader | None] = field(default_factory=list)
    """One a source; None where no row could be read."""
    hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    """Of each valid row's content, in reading order."""
    source_rows: list[int] = field(default_factory=list)
    """Valid rows of each source."""
    ignored: dict[tuple[str, str], Problem] = field(default_factory=dict)
    """The first of each source's message fields that are not read, by source and name."""
    empty: list[Problem] = field(default_factory=list)
    """Sources of which some files hold no row."""

    @property
    def valid(self) -> int:
        """Rows that can be used."""
        return len(self.hashes)

    @property
    def duplicates(self) -> int:
        """Rows whose content was there before."""
        return self.valid - len(np.unique(self.hashes))


def example_problem(example: Example, loss_on: LossOn) -> BadRow | None:
    """Return what makes an example unusable, before any template sees it."""
    if isinstance(example, Pair):
        if not example.completion.strip():
            return BadRow("empty-content", "output is empty", f"write it, or {DROP_FIX}")
        return None
    turns = example.messages
    if not turns:
        return BadRow("no-messages", "no messages", f"remove the row, or {DROP_FIX}")
    for number, turn in enumerate(turns):
        if turn.role == "system" and number > 0:
            return BadRow(
                "system-not-first",
                f"a system message at position {number + 1}; it must come first",
                f"move it to the front, or {DROP_FIX}",
            )
        if not turn.content.strip():
            return BadRow(
                "empty-content",
                f"the {turn.role} message at position {number + 1} is empty",
                f"write it, or {DROP_FIX}",
            )
        if number > 0 and turn.role == turns[number - 1].role:
            return BadRow(
                "roles-do-not-alternate",
                f"two {turn.role} messages in a row at position {number + 1}",
                f"join them, or {DROP_FIX}",
            )
    if loss_on != "All" and all(turn.role != "assistant" for turn in turns):
        return BadRow(
            "no-assistant-turn",
            "no assistant turn, nothing to learn from",
            f"add the answer, or {DROP_FIX}",
        )
    return None


def content_hash(example: Example) -> int:
    """Return 64 bits that depend on the content alone, the same on every machine."""
    state = hashlib.blake2b(digest_size=8)
    parts = (
        [part for turn in example.messages for part in (turn.role, turn.content)]
        if isinstance(example, Conversation)
        else [example.prompt, example.completion]
    )
    for part in parts:
        data = part.encode()
        state.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(state.digest(), "little")


def valid_rows(
    source: Source, settings: Settings, scan: Scan | None = None, reader: Reader | None = None
) -> Iterator[Checked]:
    """Yield the usable rows of a source, in order; a scan counts and names all others.

    With ``reader`` the format is taken as known from an earlier pass.
    """
    findings = scan.findings if scan else Findings()
    first: Row | None = None
    unseen: dict[str, str] = {}
    for row in itertools.islice(_rows(source, scan), source.spec.max_rows):
        if scan:
            scan.rows += 1
        if row.problem is not None:
            findings.add(row.problem, fatal=row.end_of_file)
            continue
        if not isinstance(row.value, dict):
            kind = "null" if row.value is None else type(row.value).__name__
            bad = BadRow(
                "not-an-object", f"a row is a JSON object, not {kind}", f"remove it, or {DROP_FIX}"
            )
            findings.add(_problem(row, bad))
            continue
        try:
            if reader is None:
                reader = reader_for(source.spec, row.value, stanford=settings.stanford)
                first, unseen = row, dict(reader.columns)
        except BadRow as bad:
            findings.add(_problem(row, bad), fatal=True)
            return
        if unseen:
            unseen = {ours: name for ours, name in unseen.items() if name not in row.value}
        checked = _check(row, reader, settings)
        if isinstance(checked, BadRow):
            findings.add(_problem(row, checked))
        else:
            if scan:
                _note_ignored(scan, source, row, reader)
            yield checked
    if first is not None:
        for ours, name in unseen.items():  # an optional column that no row has
            findings.add(_problem(first, unknown_column(ours, name, first.value)), fatal=True)
    if scan:
        scan.readers.append(reader)


def _rows(source: Source, scan: Scan | None) -> Iterator[Row]:
    """Yield the rows of a source; a scan is told of files among others that hold none."""
    empty = []
    some = False
    for file in source.files:
        found = False
        for row in rows(file):
            found = some = True
            yield row
        if not found:
            empty.append(file.shown)
    if scan and some and empty:
        scan.empty.append(_empty_files(source, empty))


def _empty_files(source: Source, names: Sequence[str]) -> Problem:
    more = ", ..." if len(names) > MAX_LISTED else ""
    listed = ", ".join(names[:MAX_LISTED])[:600] + more
    return Problem(
        code="files-without-rows",
        message=f"files of {source.spec.uri} without a row: {listed}",
        fix="copy them again, or remove them",
        field=source.field,
        severity="warning",
    )


def _note_ignored(scan: Scan, source: Source, row: Row, reader: Reader) -> None:
    if len(scan.ignored) >= MAX_LISTED:
        return
    for name in sorted(reader.ignored(row.value)):
        if (source.field, name) not in scan.ignored:
            bad = BadRow(
                "ignored-message-field",
                f"messages of {source.spec.uri} have {name!r:.80}, which is not read",
                "remove the field, unless it holds nothing to learn from",
            )
            problem = _problem(row, bad).model_copy(update={"severity": "warning"})
            scan.ignored[source.field, name] = problem


def _check(row: Row, reader: Reader, settings: Settings) -> Checked | BadRow:
    loss_on = settings.loss_on or reader.format.loss_on
    try:
        example = reader.read(row.value, loss_on)
    except BadRow as bad:
        return bad
    problem = example_problem(example, loss_on)
    if problem:
        return problem
    return Checked(row.file, row.line, with_system(example, settings.system_prompt), loss_on)


def with_system(example: Example, prompt: str | None) -> Example:
    """Put the job's system prompt in front of a conversation that has none."""
    if not prompt or isinstance(example, Pair) or example.messages[0].role == "system":
        return example
    from finetune_trainer.data.formats import Message

    return Conversation((Message("system", prompt), *example.messages))


def _problem(row: Row, bad: BadRow) -> Problem:
    return Problem(
        code=bad.code,
        message=bad.message[:900],
        fix=bad.fix[:1024],
        file=row.file,
        line=row.line,
    )


def scan(
    sources: Sequence[Source], settings: Settings, tick: Callable[[Checked], None] = lambda _: None
) -> Scan:
    """Read every row of a split once and return what was found; nothing is kept but hashes."""
    result = Scan()
    hashes: list[npt.NDArray[np.uint64]] = []
    pending: list[int] = []
    for source in sources:
        before, rows_before = sum(map(len, hashes)) + len(pending), result.rows
        for checked in valid_rows(source, settings, result):
            tick(checked)
            pending.append(content_hash(checked.example))
            if len(pending) >= 65536:
                hashes.append(np.asarray(pending, dtype=np.uint64))
                pending = []
        if len(result.readers) < len(result.source_rows) + 1:
            result.readers.append(None)
        result.source_rows.append(sum(map(len, hashes)) + len(pending) - before)
        if result.rows == rows_before:
            result.findings.add(_empty(source), fatal=True)
    result.hashes = np.concatenate([*hashes, np.asarray(pending, dtype=np.uint64)])
    return result


def _empty(source: Source) -> Problem:
    return Problem(
        code="empty-file",
        message=f"{source.spec.uri} is empty",
        fix="write at least one row",
        field=source.field,
        file=source.files[0].shown,
    )


def verdict(result: Scan, invalid_rows: str, max_fraction: float | None) -> list[Problem]:
    """Return warnings when the bad rows may be dropped; raises ``Refused`` when not."""
    findings = result.findings
    if findings.fatal or (findings.found and invalid_rows == "Fail"):
        raise Refused(*findings.problems())
    if max_fraction is not None and findings.rows > max_fraction * result.rows:
        raise Refused(
            Problem(
                code="too-many-invalid-rows",
                message=f"{findings.rows:,} of {result.rows:,} rows are invalid "
                f"({findings.rows / result.rows:.1%}), more than "
                f"dataset.maxInvalidFraction {max_fraction:g}",
                fix="correct the rows below, or raise dataset.maxInvalidFraction",
                field="spec.dataset.maxInvalidFraction",
            ),
            *findings.problems(),
        )
    if not result.valid:
        raise Refused(
            Problem(
                code="no-rows",
                message="no row is left to train on",
                fix="add rows to dataset.train",
                field="spec.dataset.train",
            ),
            *findings.problems(),
        )
    return [*findings.problems("warning"), *result.ignored.values(), *result.empty]
