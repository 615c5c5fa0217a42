"""What a person sees of a job that runs: plain lines, or a live table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, get_args

from finetune_api.quantity import format_duration
from finetune_api.reports import Progress
from finetune_api.status import Condition, ConditionType, FailureClass, JobStatus, Resume

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import Progress as Bar
    from rich.table import Table

QUIET = 10.0
"""Seconds between two lines of mere progress."""
_SAID_ELSEWHERE = {
    "Pending",
    "Preparing",
    "Starting",
    "Trained",
    "Stopping",
    *get_args(FailureClass),
}
"""Reasons that the phase, or how an attempt ended, tells already."""


class Named(Protocol):
    """The identity of a job."""

    @property
    def name(self) -> str:
        """Its name."""
        ...


class Viewed(Protocol):
    """A job that can be shown: of this machine or of a cluster."""

    @property
    def metadata(self) -> Named:
        """Who it is."""
        ...

    @property
    def status(self) -> JobStatus:
        """How it stands."""
        ...


class PlainView:
    """One line a transition, and one line of progress now and then."""

    def __init__(self, out: Callable[[str], None], quiet: float = QUIET) -> None:
        """Write lines with ``out``."""
        self._out = out
        self._quiet = quiet
        self._seen: dict[str, object] = {}
        self._told: float | None = None
        self._step = -1

    def show(self, record: Viewed, progress: Progress | None) -> None:
        """Write what has changed since the last look."""
        for key, value, line in news(record):
            if self._seen.get(key) != value:
                self._seen[key] = value
                self._out(line)
        self._progress(record.status, progress)

    def say(self, line: str) -> None:
        """Write a line."""
        self._out(line)

    def close(self) -> None:
        """Nothing to take down."""

    def _progress(self, status: JobStatus, progress: Progress | None) -> None:
        if progress is None or status.phase != "Running" or progress.attempt != status.attempt:
            return
        if progress.step == self._step or progress.phase == "loading":
            return
        now = time.monotonic()
        last = progress.step == progress.total_steps
        if self._told is not None and now - self._told < self._quiet and not last:
            return
        self._told, self._step = now, progress.step
        self._out("  " + progress_line(progress))


def news(record: Viewed) -> Iterator[tuple[str, object, str]]:
    """Yield (topic, value, line) of everything that is worth a line when its value changes."""
    status = record.status
    found = {condition.type: condition for condition in status.conditions}
    yield from _held_up(status, found)
    prepared = found.get("Prepared")
    if prepared is not None and prepared.status == "True":
        yield "prepared", True, f"prepared   {prepared.message}"
        for choice in status.chosen:
            yield (
                f"chosen {choice.field}",
                choice.value,
                _choice(choice.field, choice.value, choice.reason),
            )
    elif status.phase == "Preparing":
        yield "preparing", status.tries, f"preparing  try {status.tries}: reading model and data"
    if status.checkpoint is not None:
        text = f"checkpoint step {status.checkpoint.step}, {status.checkpoint.digest[:19]}"
        yield "checkpoint", status.checkpoint.path, text
    for resume in status.resumes[-1:]:
        yield f"resume {resume.attempt}", resume.cause, f"ended      {_ended(record, resume)}"
        if resume.rejected:
            yield "rejected", resume.rejected, "not usable " + "; ".join(resume.rejected)
    if status.phase == "Running" and status.attempt:
        began = _began(status)
        yield "running", began, f"training   {began}"
    waits = found.get("Recovering")
    if waits is not None and waits.status == "True" and waits.reason != "Restarting":
        yield (
            "recovering",
            (status.attempt, status.tries, waits.reason),
            f"recovering {waits.message}",
        )
    if status.phase == "Publishing":
        yield "publishing", status.tries, "publishing merging and verifying the model"
    if status.stopping not in (None, "Stopped") and status.phase not in ("Succeeded", "Failed"):
        yield (
            "stopping",
            (status.attempt, status.stopping),
            f"stopping   {status.stopping}: saving first",
        )


def _held_up(
    status: JobStatus, found: Mapping[ConditionType, Condition]
) -> Iterator[tuple[str, object, str]]:
    """Yield why a job does not go on, where somebody or something else has to act first."""
    accepted = found.get("Accepted")
    if accepted is not None and accepted.status == "False":
        yield "accepted", accepted.message, f"refused    {accepted.reason}: {accepted.message}"
    stages: tuple[ConditionType, ...] = ("Prepared", "Running")
    for type_ in stages:
        waits = found.get(type_)
        if waits is None or waits.status == "True" or waits.reason in _SAID_ELSEWHERE:
            continue
        now = (status.attempt, status.tries, waits.reason)
        yield f"waits {type_}", now, f"waiting    {waits.reason}: {waits.message}"
    rests: tuple[tuple[ConditionType, str], ...] = (
        ("Queued", "queued"),
        ("Suspended", "suspended"),
    )
    for type_, word in rests:
        holds = found.get(type_)
        if holds is not None and holds.status == "True":
            yield word, holds.last_transition_time, f"{word:10} {holds.message or holds.reason}"


def _choice(field: str, value: str, reason: str) -> str:
    return f"  chosen   {field}: {value} ({reason})"


def _began(status: JobStatus) -> str:
    resumes = [entry for entry in status.resumes if entry.attempt == status.attempt]
    if not resumes or resumes[-1].digest is None:
        return f"attempt {status.attempt} from step 0"
    return f"attempt {status.attempt} from verified step {resumes[-1].from_step}"


def _ended(record: Viewed, resume: Resume) -> str:
    failure = record.status.last_failure
    why = f": {failure.message}" if failure and failure.class_ == resume.cause else ""
    saved = f"checkpoint {resume.from_step} is saved" if resume.digest else "nothing was saved yet"
    return f"attempt {resume.attempt - 1} at step {resume.stopped_at}, {resume.cause}{why}; {saved}"


def progress_line(progress: Progress) -> str:
    """Return one progress as a line: ``step 31/56  loss 0.84  1,204 tokens/s  ETA 1m20s``."""
    parts = [f"step {progress.step}/{progress.total_steps}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if "loss" in progress.evaluation:
        parts.append(f"eval loss {progress.evaluation['loss']:.3f}")
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.eta_seconds is not None:
        parts.append(f"ETA {format_duration(progress.eta_seconds)}")
    if progress.checkpoint is not None:
        parts.append(f"checkpoint {progress.checkpoint.step}")
    if progress.phase in ("evaluating", "saving"):
        parts.append(progress.phase)
    return "  ".join(parts)


class RichView:
    """A table that stays in place, with the lines of ``PlainView`` above it."""

    def __init__(self, console: Console) -> None:
        """Take over the bottom of a terminal."""
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._console = console
        self._plain = PlainView(self._line, quiet=float("inf"))
        self._bar: Bar = Bar(
            TextColumn("{task.description}"), BarColumn(bar_width=40), MofNCompleteColumn()
        )
        self._task = self._bar.add_task("", total=None, visible=False)
        self._live: Live = Live(console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def show(self, record: Viewed, progress: Progress | None) -> None:
        """Refresh the table."""
        self._plain.show(record, None)
        self._live.update(self._table(record, progress))

    def say(self, line: str) -> None:
        """Write a line above the table."""
        self._line(line)

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()

    def _line(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _table(self, record: Viewed, progress: Progress | None) -> Group:
        from rich.console import Group
        from rich.text import Text

        status = record.status
        current = progress if progress and progress.attempt == status.attempt else None
        head = Text(f"{record.metadata.name}  {status.phase or 'Pending'}", style="bold")
        if status.summary.reason:
            head.append(f"/{status.summary.reason}")
        head.append(f"  {_counts(status)}", style="dim")
        if current is None or not current.total_steps or status.phase != "Running":
            return Group(head, _conditions(status))
        self._bar.update(
            self._task,
            total=current.total_steps,
            completed=current.step,
            description=current.phase,
            visible=True,
        )
        line = Text(progress_line(current))
        return Group(head, self._bar, line, _conditions(status))


def _conditions(status: JobStatus) -> Table:
    """Return the conditions as ``kubectl describe`` shows them, each on one line."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2), expand=True)
    for width in (10, 7, None):
        table.add_column(no_wrap=True, min_width=width)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for one in status.conditions:
        style = "" if one.status == "True" else "dim"
        message = " ".join(one.message.split())
        table.add_row(one.type, one.status, one.reason, message, style=style)
    return table


def _counts(status: JobStatus) -> str:
    parts = [f"attempt {status.attempt}"] if status.attempt else []
    if status.failures:
        parts.append(f"{status.failures} failed")
    if status.preemptions:
        parts.append(f"{status.preemptions} interrupted")
    if status.checkpoint is not None:
        parts.append(f"checkpoint {status.checkpoint.step} verified")
    return ", ".join(parts)
