"""What a person sees of a job: plain lines, a live table, and the closing summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.job import JobSpec
from finetune_api.names import Layout
from finetune_api.quantity import format_bytes, format_duration
from finetune_api.reports import CompletionManifest, Progress
from finetune_api.source import parse_uri
from finetune_api.status import JobStatus, Resume
from finetune_cli.run.record import Record

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import Progress as Bar

QUIET = 10.0
"""Seconds between two lines of mere progress."""


class PlainView:
    """One line a transition, and one line of progress now and then."""

    def __init__(self, out: Callable[[str], None], quiet: float = QUIET) -> None:
        """Write lines with ``out``."""
        self._out = out
        self._quiet = quiet
        self._seen: dict[str, object] = {}
        self._told: float | None = None
        self._step = -1

    def show(self, record: Record, progress: Progress | None) -> None:
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


def news(record: Record) -> Iterator[tuple[str, object, str]]:
    """Yield (topic, value, line) of everything that is worth a line when its value changes."""
    status = record.status
    found = {condition.type: condition for condition in status.conditions}
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


def _choice(field: str, value: str, reason: str) -> str:
    return f"  chosen   {field}: {value} ({reason})"


def _began(status: JobStatus) -> str:
    resumes = [entry for entry in status.resumes if entry.attempt == status.attempt]
    if not resumes or resumes[-1].digest is None:
        return f"attempt {status.attempt} from step 0"
    return f"attempt {status.attempt} from verified step {resumes[-1].from_step}"


def _ended(record: Record, resume: Resume) -> str:
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

    def show(self, record: Record, progress: Progress | None) -> None:
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

    def _table(self, record: Record, progress: Progress | None) -> Group:
        from rich.console import Group
        from rich.text import Text

        status = record.status
        current = progress if progress and progress.attempt == status.attempt else None
        head = Text(f"{record.metadata.name}  {status.phase or 'Pending'}", style="bold")
        head.append(f"  {_counts(status)}", style="dim")
        if current is None or not current.total_steps or status.phase != "Running":
            return Group(head)
        self._bar.update(
            self._task,
            total=current.total_steps,
            completed=current.step,
            description=current.phase,
            visible=True,
        )
        return Group(head, self._bar, Text(progress_line(current)))


def _counts(status: JobStatus) -> str:
    parts = [f"attempt {status.attempt}"] if status.attempt else []
    if status.failures:
        parts.append(f"{status.failures} failed")
    if status.preemptions:
        parts.append(f"{status.preemptions} interrupted")
    if status.checkpoint is not None:
        parts.append(f"checkpoint {status.checkpoint.step} verified")
    return ", ".join(parts)


def stopped_line(record: Record) -> str:
    """Return what a user reads who stopped the job."""
    status = record.status
    kept = status.checkpoint
    if status.trained:
        what = "training is done, publishing is not"
    elif kept is not None:
        what = f"at step {kept.step}, saved"
    elif status.prepared:
        what = "before anything was saved"
    else:
        what = "while it was prepared"
    return f"stopped {what}; run the same command to go on"


def failure_lines(record: Record) -> Iterator[str]:
    """Yield why a job failed and what mends it."""
    failure = record.status.last_failure
    if failure is None:
        return
    yield f"{record.metadata.name}  Failed/{failure.class_}: {failure.message} [{failure.code}]"
    if failure.fix:
        yield f"  fix: {failure.fix}"
    for child in record.children:
        if child.log:
            yield f"  log: {child.log}"


def summary(
    record: Record, layout: Layout, done: CompletionManifest | None, progress: Progress | None
) -> Iterator[str]:
    """Yield the closing lines of a job that succeeded."""
    status, spec = record.status, record.resolved.spec
    text = f"{record.metadata.name}  Succeeded{_took(record)}   {_method(spec)} on {_short(spec.model.uri)}"
    if done is not None:
        text += f", {done.steps:,} steps"
        text += f", {_millions(done.tokens)} tokens" if done.tokens else ""
    yield text
    yield from _evaluated(spec, done)
    if status.goodput.fraction is not None:
        held = format_duration(status.active_seconds)
        yield f"  trained for {held}, productive {status.goodput.fraction:.1%}"
    for resume in status.resumes:
        yield "  " + _resumed(resume)
    peak = progress.peak_memory_bytes if progress is not None else 0
    if peak and status.memory is not None and status.memory.predicted_bytes:
        predicted = format_bytes(status.memory.predicted_bytes)
        yield f"  peak memory {format_bytes(peak)} (predicted {predicted})"
    if done is not None:
        yield f"  model  {_place(record, layout, done.uri)}  {_verified(done)}"


def _took(record: Record) -> str:
    try:
        began = datetime.fromisoformat(record.metadata.creation_timestamp)
        ended = datetime.fromisoformat((record.status.finished_at or "").replace("Z", "+00:00"))
    except ValueError:
        return ""
    return f" in {format_duration((ended - began).total_seconds())}"


def _method(spec: JobSpec) -> str:
    if spec.method.lora is not None:
        return f"LoRA r={spec.method.lora.r}"
    return "full fine-tuning"


def _short(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 100_000 else f"{count:,}"


def _evaluated(spec: JobSpec, done: CompletionManifest | None) -> Iterator[str]:
    if done is None or "loss" not in done.evaluation_after:
        return
    after = done.evaluation_after["loss"]
    before = done.evaluation_before.get("loss")
    text = (
        f"  eval loss {before:.3f} -> {after:.3f}"
        if before is not None
        else f"  eval loss {after:.3f}"
    )
    yield text + f"   gate: {'met' if spec.evaluation.gate else 'not set'}"


def _resumed(resume: Resume) -> str:
    if resume.digest is None:
        return f"attempt {resume.attempt}: {resume.cause} at step {resume.stopped_at}, began again at step 0"
    lost = f"{resume.lost_steps} step{'s' if resume.lost_steps != 1 else ''} repeated"
    digest = resume.digest.removeprefix("sha256:")[:8]
    text = (
        f"attempt {resume.attempt}: {resume.cause} at step {resume.stopped_at}, resumed from"
        f" {resume.from_step} (sha256 {digest}...), {lost}"
    )
    return text + (f"; not usable: {'; '.join(resume.rejected)}" if resume.rejected else "")


def _place(record: Record, layout: Layout, uri: str) -> str:
    """Return the folder of the model on this machine."""
    try:
        source = parse_uri(uri)
    except ValueError:
        return str(layout.root / uri)
    folder = record.volumes.get(source.name)
    return f"{uri} = {Path(folder) / source.path}" if folder else uri


def _verified(done: CompletionManifest) -> str:
    merged = "merged" if done.merged else "not merged"
    if done.verification is None:
        return f"({merged})"
    proof = done.verification
    return (
        f"({merged}, logits checked on {proof.prompts} prompts, max diff"
        f" {proof.max_difference:.0e})"
    )
