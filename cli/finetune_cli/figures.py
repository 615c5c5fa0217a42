"""The figures of a job, as far as its status tells them: of this machine or of a cluster."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.quantity import format_bytes, format_duration
from finetune_api.status import JobStatus
from finetune_cli.closing import resume_line, took_line
from finetune_cli.view import Viewed

_SPENT = ("productive", "starting", "saving", "evaluating", "lost")


def figures(job: Viewed, created: str) -> Iterator[str]:
    """Yield what is known of a job, the outcome first; what is not known is left out.

    Args:
        job: of this machine or of a cluster.
        created: when it was made.
    """
    status = job.status
    took = took_line(created, status.finished_at) if status.outcome else ""
    what = f"   {status.summary.method} on {status.summary.model}" if status.summary.model else ""
    yield f"{job.metadata.name}  {status.phase or 'Pending'}{took}{what}"
    failure = status.last_failure
    if status.outcome == "Failed" and failure is not None:
        yield f"  failed      {failure.class_}: {failure.message} [{failure.code}]"
        if failure.fix:
            yield f"  fix         {failure.fix}"
    yield from _data(status)
    yield from _training(status)
    yield from _attempts(status)
    yield from _memory(status)
    for choice in status.chosen:
        yield f"  chosen      {choice.field}: {choice.value} ({choice.reason})"


def _data(status: JobStatus) -> Iterator[str]:
    data = status.dataset
    if data is None:
        return
    dropped = f", {data.dropped:,} dropped" if data.dropped else ""
    yield f"  data        {data.rows:,} rows{dropped}, {data.sequences:,} sequences"
    yield f"  tokens      {data.trained_tokens:,} trained of {data.tokens:,}"


def _training(status: JobStatus) -> Iterator[str]:
    progress = status.progress
    if progress is not None and progress.total_steps:
        text = f"  training    step {progress.step:,} of {progress.total_steps:,}"
        text += f", loss {progress.loss:.3f}" if progress.loss is not None else ""
        if progress.tokens_per_second:
            text += f", {progress.tokens_per_second:,.0f} tokens/s"
        yield text
    if status.output is not None and status.output.evaluation:
        found = sorted(status.output.evaluation.items())
        yield "  evaluation  " + ", ".join(f"{name} {value:.4g}" for name, value in found)


def _attempts(status: JobStatus) -> Iterator[str]:
    if status.attempt:
        counts = (
            (status.failures, "failed"),
            (status.preemptions, "interrupted"),
            (status.suspensions, "suspended"),
        )
        parts = [f"{count} {word}" for count, word in counts if count]
        yield f"  attempts    {status.attempt}" + (f" ({', '.join(parts)})" if parts else "")
    for resume in status.resumes:
        yield f"              {resume_line(resume)}"
    spent = [(name, getattr(status.goodput, name)) for name in _SPENT]
    if status.goodput.fraction is not None:
        parts = [f"{name} {format_duration(seconds)}" for name, seconds in spent if seconds]
        yield f"  time        {status.goodput.fraction:.1%} productive: {', '.join(parts)}"


def _memory(status: JobStatus) -> Iterator[str]:
    memory = status.memory
    if memory is None:
        return
    parts = []
    if memory.predicted_bytes:
        parts.append(f"{format_bytes(memory.predicted_bytes)} predicted")
    if memory.observed_bytes:
        parts.append(f"{format_bytes(memory.observed_bytes)} seen")
    if parts:
        yield f"  memory      {', '.join(parts)}, of one process"
