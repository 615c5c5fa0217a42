"""What a person reads when a job has ended."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from finetune_api.job import JobSpec
from finetune_api.names import Layout
from finetune_api.quantity import format_bytes, format_duration
from finetune_api.reports import CompletionManifest, Progress
from finetune_api.source import parse_uri
from finetune_api.status import JobStatus, Resume
from finetune_cli.run.record import Record
from finetune_cli.view import Viewed


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
    yield from why_failed(record)
    for child in record.children if record.status.last_failure else ():
        if child.log:
            yield f"  log: {child.log}"


def why_failed(record: Viewed) -> Iterator[str]:
    """Yield what ended a job and what mends it."""
    failure = record.status.last_failure
    if failure is None:
        return
    yield f"{record.metadata.name}  Failed/{failure.class_}: {failure.message} [{failure.code}]"
    if failure.fix:
        yield f"  fix: {failure.fix}"


def summary(
    record: Record, layout: Layout, done: CompletionManifest | None, progress: Progress | None
) -> Iterator[str]:
    """Yield the closing lines of a job that succeeded."""
    status, spec = record.status, record.resolved.spec
    took = took_line(record.metadata.creation_timestamp, status.finished_at)
    text = f"{record.metadata.name}  Succeeded{took}   {_method(spec)} on {_short(spec.model.uri)}"
    if done is not None:
        text += f", {done.steps:,} steps"
        text += f", {_millions(done.tokens)} tokens" if done.tokens else ""
    yield text
    yield from _evaluated(spec, done)
    yield from spent(status)
    peak = progress.peak_memory_bytes if progress is not None else 0
    if peak and status.memory is not None and status.memory.predicted_bytes:
        predicted = format_bytes(status.memory.predicted_bytes)
        yield f"  peak memory {format_bytes(peak)} (predicted {predicted})"
    if done is not None:
        yield f"  model  {_place(record, layout, done.uri)}  {_verified(done)}"


def spent(status: JobStatus) -> Iterator[str]:
    """Yield where the time went, and each interruption."""
    if status.goodput.fraction is not None:
        held = format_duration(status.active_seconds)
        yield f"  trained for {held}, productive {status.goodput.fraction:.1%}"
    for resume in status.resumes:
        yield "  " + resume_line(resume)


def took_line(created: str, finished: str | None) -> str:
    """Return `` in 3h12m``; nothing where a time cannot be read."""
    try:
        began, ended = (
            datetime.fromisoformat(time_.replace("Z", "+00:00"))
            for time_ in (created, finished or "")
        )
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


def resume_line(resume: Resume) -> str:
    """Return how an attempt after the first began, in one line."""
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
