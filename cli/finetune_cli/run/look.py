"""What can be seen of a job on this machine: its processes, and the reports in its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from finetune_api.checkpoint import Claim
from finetune_api.document import Document
from finetune_api.exit_codes import ExitCode
from finetune_api.names import Layout
from finetune_api.reports import CompletionManifest, PrepareReport, Progress, TerminationReport
from finetune_api.resolved import Choices
from finetune_cli.run.processes import Kept, alive, end_of, has_started
from finetune_cli.run.record import LocalChild, Record
from finetune_operator.observed import ChildState, Live, Observed, ProcessEnd

Model = TypeVar("Model", bound=Document)


def read(model: type[Model], path: Path, uid: str) -> Model | None:
    """Return a report of this job; None when there is none, or it is of another."""
    try:
        found = model.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    return found if getattr(found, "job_uid", uid) == uid else None


def observe(record: Record, layout: Layout, live: Live) -> Observed:
    """Return everything that the planner wants to know.

    Ends are looked at first: what a process left is there once its end is, so that an end is never
    seen without it.
    """
    uid = record.metadata.uid
    children = tuple(child_state(child, layout, uid) for child in record.children)
    published = None
    if any(c.stage == "publish" and succeeded(c) for c in record.children):
        published = _placed(read(CompletionManifest, layout.publish_report, uid), layout)
    return Observed(
        live=live,
        children=children,
        report=read(PrepareReport, layout.prepare_report, uid),
        choices=record.choices or choices_of(record, layout),
        progress=read(Progress, layout.progress, uid),
        claim=newest_claim(layout, uid),
        published=published,
    )


def _placed(done: CompletionManifest | None, layout: Layout) -> CompletionManifest | None:
    """Say where a model lies that the trainer left in the job's own folder, which it calls ``output``.

    The manifest beside the model keeps the short name: the folder may be moved.
    """
    if done is None or "://" in done.uri:
        return done
    return done.model_copy(update={"uri": str(layout.root / done.uri)})


def succeeded(child: LocalChild) -> bool:
    """Tell whether all processes of a child ended with 0."""
    ends = [end_of(kept) for kept in child.kept]
    return all(end is not None and end.exit_code == 0 for end in ends)


def choices_of(record: Record, layout: Layout) -> Choices | None:
    """Return what a preparation chose that has ended with success."""
    for child in record.children:
        if child.stage == "prepare" and succeeded(child):
            report = read(PrepareReport, layout.prepare_report, record.metadata.uid)
            if report is not None and report.choices is not None:
                return report.choices
    return None


def child_state(child: LocalChild, layout: Layout, uid: str) -> ChildState:
    """Return the state of one child from its keepers and what they left."""
    ends: list[ProcessEnd] = []
    running = 0
    for kept in child.kept:
        # The order matters: a keeper that is gone after this line has left its file before it.
        lives = alive(kept)
        end = end_of(kept)
        if end is not None:
            ends.append(_end(child, kept, layout, uid))
        elif lives:
            running += 1
        else:
            ends += _end_unseen(child, kept, layout, uid)
    told_at = _time(child.stopped_at) if child.stopped_at else None
    return ChildState(
        name=child.name,
        uid=child.uid,
        processes=len(child.kept),
        running=running,
        ends=tuple(ends),
        over=running == 0,
        active_since=_time(child.started_at),
        ran=all(has_started(kept) for kept in child.kept),
        stopped_at=told_at,
        told_at=told_at,
    )


def _end(child: LocalChild, kept: Kept, layout: Layout, uid: str) -> ProcessEnd:
    end = end_of(kept)
    assert end is not None
    found = ProcessEnd(
        name=kept.name,
        at=end.at,
        exit_code=end.exit_code,
        report=_report(child, kept, layout, uid),
    )
    if end.oom_killed:
        text = "the kernel ended it because memory ran out"
        return replace(found, reason="OOMKilled", message=text)
    if end.exit_code == ExitCode.KILLED and child.killed:
        return replace(found, message="it did not end within the grace period and was killed")
    if end.exit_code == ExitCode.KILLED:
        return replace(found, message="killed from outside (SIGKILL)")
    return replace(found, message=f"its log is {child.log}" if end.exit_code == 1 else "")


def _end_unseen(child: LocalChild, kept: Kept, layout: Layout, uid: str) -> list[ProcessEnd]:
    """A process whose keeper was killed too: its own last report says how it ended, if there is one."""
    report = _report(child, kept, layout, uid)
    if report is None:
        return []
    now = datetime.now(UTC)
    return [ProcessEnd(name=kept.name, at=now, exit_code=report.exit_code, report=report)]


def _report(child: LocalChild, kept: Kept, layout: Layout, uid: str) -> TerminationReport | None:
    """The newest word of a process: its termination message, else what it left in the reports."""
    said = read(TerminationReport, Path(kept.report_file), uid)
    if said is not None or child.stage != "train":
        return said
    for file in sorted(layout.reports.glob(f"*/end-{kept.node}.json"), reverse=True):
        found = read(TerminationReport, file, uid)
        if found is not None and found.attempt == child.attempt:
            return found
    return None


def newest_claim(layout: Layout, uid: str) -> Claim | None:
    """Return the claim with the highest number."""
    numbers = [int(f.stem) for f in layout.claims.glob("*.json") if f.stem.isdigit()]
    return read(Claim, layout.claim(max(numbers)), uid) if numbers else None


def never_started(child: LocalChild) -> bool:
    """Tell whether no keeper of a child ever started its process: the runner died before."""
    return not any(has_started(kept) or alive(kept) or end_of(kept) for kept in child.kept)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
