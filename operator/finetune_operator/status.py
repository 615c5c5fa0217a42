"""``status`` from the ledger and what was seen: phase, conditions, and the summaries users read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from finetune_api.quantity import format_bytes
from finetune_api.reports import PrepareReport
from finetune_api.resolved import Chosen, ResolvedJob
from finetune_api.status import (
    Condition,
    ConditionType,
    DatasetStatus,
    JobStatus,
    Ledger,
    MemoryStatus,
    OutputStatus,
    Phase,
    ResolvedRef,
    Resume,
)
from finetune_operator.columns import progress, summary
from finetune_operator.observed import Observed
from finetune_operator.plan.attempt import micro_batch
from finetune_operator.plan.situation import Situation, text_of
from finetune_operator.status_size import within
from finetune_operator.steps import Step, Stop, Wait


@dataclass(frozen=True)
class _Said:
    """A condition before it has a time."""

    type: ConditionType
    true: bool
    reason: str
    message: str | None = ""
    """None: what was said before stays."""


def derive(
    job: ResolvedJob,
    ledger: Ledger,
    observed: Observed,
    step: Step,
    now: datetime,
    previous: JobStatus | None = None,
) -> JobStatus:
    """Return the status of a job; the ledger is taken over, its texts cut where all is too large.

    ``previous`` gives the times of conditions that have not changed, and what cannot be seen any
    more (the report of a preparation whose folder is out of reach).
    """
    s = Situation(job, ledger, observed, now)
    step = _placed(s, step)
    before = previous or JobStatus()
    child = s.child
    dated = _dated(conditions(s, step), before, observed.live.generation, text_of(now))
    heard = progress(s, before)
    facts = {name: getattr(ledger, name) for name in Ledger.model_fields}
    status = JobStatus(
        **facts,
        phase=phase(s),
        summary=summary(s, phase(s), dated, heard),
        observed_generation=observed.live.generation,
        conditions=dated,
        resolved=before.resolved or ResolvedRef(digest=job.digest),
        trainer_image=job.trainer_image[:512],
        backend=observed.kinds.train,
        trainer_status=child.platform_status[:64] if child else before.trainer_status,
        progress=heard,
        dataset=_dataset(observed.report) or before.dataset,
        memory=_memory(s, before.memory),
        chosen=_chosen(s, before.chosen),
        output=_output(s) or before.output,
    )
    return within(status)


def _placed(s: Situation, step: Step) -> Step:
    """Let a wait of a job that is accepted explain the condition of the stage that waits."""
    if not isinstance(step, Wait) or step.condition != "Accepted" or step.reason == "NothingToDo":
        return step
    if s.stage == "prepare":
        return replace(step, condition="Prepared")
    again = s.stage == "train" and s.ledger.attempt > 1
    return replace(step, condition="Recovering" if again else "Running")


def phase(s: Situation) -> Phase:
    """Return the phase: a summary for people, from which nothing is ever decided."""
    ledger, child = s.ledger, s.child
    if ledger.outcome is not None:
        return ledger.outcome
    if s.observed.live.suspend and s.alive is None and not s.observed.strangers(ledger.child):
        return "Suspended"
    if s.stage == "prepare":
        return "Preparing" if child is not None else "Pending"
    if s.stage == "publish":
        return "Publishing"
    if child is not None and child.ran and not child.over:
        return "Running"
    if child is not None and child.active_since is None and not child.over:
        return "Queued"
    return "Recovering" if ledger.attempt > 1 else "Starting"


def conditions(s: Situation, step: Step) -> Iterator[_Said]:
    """Say everything that holds, and what has held and does so no more."""
    ledger, now = s.ledger, phase(s)
    yield _Said("Accepted", True, "Accepted", "")
    yield _prepared(s, step)
    waits = step if isinstance(step, Wait) else None
    if now == "Queued":
        reason, message = (waits.reason, waits.message) if waits else ("Queued", "")
        yield _Said("Queued", True, reason, message)
    elif ledger.attempt:
        yield _Said("Queued", False, "Admitted")
    if ledger.attempt:
        yield _running(s, now, step)
    if ledger.attempt > 1 or ledger.tries > 1:
        yield _recovering(s, now, waits)
    if now == "Suspended":
        reason, message = (waits.reason, waits.message) if waits else ("Suspended", "")
        yield _Said("Suspended", True, reason, message)
    elif s.observed.live.suspend and ledger.outcome is None:
        yield _Said("Suspended", False, "Suspending", "the processes save what they have")
    else:
        yield _Said("Suspended", False, "NotSuspended")
    yield from _outcome(s)


def _prepared(s: Situation, step: Step) -> _Said:
    if s.ledger.prepared:
        return _Said("Prepared", True, "DataReady", _data_message(s.observed.report))
    failure = s.ledger.last_failure
    if s.ledger.outcome == "Failed" and failure is not None:
        return _Said("Prepared", False, failure.class_, failure.message)
    if isinstance(step, Wait) and step.condition == "Prepared":
        return _Said("Prepared", False, step.reason, step.message)
    if s.child is None:
        return _Said("Prepared", False, "Pending")
    return _Said("Prepared", False, "Preparing", "reading model and data")


def _running(s: Situation, now: Phase, step: Step) -> _Said:
    number, failure = s.ledger.attempt, s.ledger.last_failure
    if now == "Running":
        if isinstance(step, Stop):
            return _Said("Running", True, "Stopping", f"attempt {number}: {step.message}")
        return _Said("Running", True, "Training", f"attempt {number} is running")
    if isinstance(step, Wait) and step.condition == "Running" and step.reason not in _USUAL:
        return _Said("Running", False, step.reason, step.message)
    if s.ledger.trained:
        return _Said("Running", False, "Trained", f"attempt {number} reached the last step")
    resume = _newest_resume(s)
    if resume is not None:
        why = failure.message if failure and failure.class_ == resume.cause else resume.cause
        text = f"attempt {number - 1} stopped at step {resume.stopped_at}: {why}"
        if resume.digest is not None:
            text += f"; checkpoint {resume.from_step} is saved and verified"
        return _Said("Running", False, resume.cause, text)
    if s.ledger.outcome == "Failed" and failure is not None:
        return _Said("Running", False, failure.class_, failure.message)
    if now == "Suspended":
        return _Said("Running", False, "Suspended")
    return _Said("Running", False, "Starting", f"attempt {number} is starting")


_USUAL = ("Training", "Publishing", "Starting")
"""Waits that say no more than the phase."""


def _newest_resume(s: Situation) -> Resume | None:
    """How the present attempt began, while the job has not ended."""
    resumes = s.ledger.resumes
    if s.ledger.outcome is None and resumes and resumes[-1].attempt == s.ledger.attempt:
        return resumes[-1]
    return None


def _recovering(s: Situation, now: Phase, waits: Wait | None) -> _Said:
    ledger = s.ledger
    if now == "Recovering" or (waits is not None and waits.condition == "Recovering"):
        if waits is not None and waits.condition == "Recovering":
            return _Said("Recovering", True, waits.reason, waits.message)
        kept = ledger.checkpoint
        where = f"resumes from step {kept.step}" if kept else "starts at step 0"
        return _Said("Recovering", True, "Restarting", f"attempt {ledger.attempt} {where}")
    resume = _newest_resume(s)
    if now == "Running" and resume is not None:
        text = f"attempt {resume.attempt} resumed from step {resume.from_step}"
        if resume.rejected:
            text += f"; not usable: {'; '.join(resume.rejected)}"
        return _Said("Recovering", False, "Recovered", text)
    return _Said("Recovering", False, "NotRecovering")


def _outcome(s: Situation) -> Iterator[_Said]:
    ledger = s.ledger
    if ledger.outcome is None:
        return
    if ledger.outcome == "Succeeded":
        output = _output(s)
        text = f"the model is at {output.uri}" if output else ""
        yield _Said("Succeeded", True, "Published", text)
        yield _Said("Failed", False, "Succeeded")
        yield _Said("Finished", True, "Succeeded")
        return
    failure = ledger.last_failure
    reason = failure.class_ if failure else "Crashed"
    text = f"{failure.message} [{failure.code}] fix: {failure.fix}" if failure else ""
    yield _Said("Succeeded", False, reason)
    yield _Said("Failed", True, reason, text)
    yield _Said("Finished", True, reason)


def _dated(
    said: Iterator[_Said], before: JobStatus, generation: int, now: str
) -> tuple[Condition, ...]:
    """Give each condition the time at which its status last changed; drop news of no weight."""
    old = {condition.type: condition for condition in before.conditions}
    kept = []
    for entry in said:
        status = "True" if entry.true else "False"
        known = old.pop(entry.type, None)
        if known is None and not entry.true and not entry.message and entry.type != "Prepared":
            continue
        stays = known is not None and known.status == status
        since = known.last_transition_time if known and stays else now
        message = entry.message
        if message is None:
            message = known.message if known and stays else ""
        kept.append(
            Condition(
                type=entry.type,
                status="True" if entry.true else "False",
                reason=entry.reason,
                message=message[:1024],
                observed_generation=generation,
                last_transition_time=since,
            )
        )
    for known in old.values():
        changed = known.status != "False"
        kept.append(
            known.model_copy(
                update={
                    "status": "False",
                    "reason": f"Not{known.type}" if changed else known.reason,
                    "message": "" if changed else known.message,
                    "observed_generation": generation,
                    "last_transition_time": now if changed else known.last_transition_time,
                }
            )
        )
    return tuple(kept)


def _data_message(report: PrepareReport | None) -> str | None:
    if report is None or report.train is None:
        return None  # nobody remembers it any more
    data = report.train
    part = f" ({data.trained_tokens / data.tokens:.0%})" if data.tokens else ""
    text = f"{data.rows_used:,} rows, {data.trained_tokens:,} trained tokens{part}"
    text += f", {data.rows_dropped:,} dropped" if data.rows_dropped else ""
    memory = report.memory
    if memory is not None and memory.predicted_bytes:
        text += f"; needs {format_bytes(memory.predicted_bytes)}"
        if memory.available_bytes:
            text += f" of {format_bytes(memory.available_bytes)}"
    return text


def _dataset(report: PrepareReport | None) -> DatasetStatus | None:
    if report is None or report.train is None or report.choices is None:
        return None
    data = report.train
    return DatasetStatus(
        rows=data.rows,
        dropped=data.rows_dropped,
        sequences=data.sequences,
        tokens=data.tokens,
        trained_tokens=data.trained_tokens,
        fingerprint=report.choices.fingerprint,
    )


def _memory(s: Situation, before: MemoryStatus | None) -> MemoryStatus | None:
    """Return what was foretold, and the most that was ever seen."""
    report, progress = s.observed.report, s.observed.progress
    seen = progress.peak_memory_bytes if progress is not None else 0
    seen = max(seen, before.observed_bytes if before is not None else 0)
    if report is None or report.memory is None:
        if before is not None:
            return before.model_copy(update={"observed_bytes": seen})
        return MemoryStatus(verdict="Unknown", observed_bytes=seen) if seen else None
    return MemoryStatus(
        verdict=report.memory.verdict,
        predicted_bytes=report.memory.predicted_bytes,
        observed_bytes=seen,
    )


def _chosen(s: Situation, before: tuple[Chosen, ...]) -> tuple[Chosen, ...]:
    """What nobody wrote, each field with its newest choice; a halved micro batch among them.

    ``before`` has what was said of preparation's choices, which the ledger holds without reasons.
    """
    choices, halvings = s.observed.choices, s.ledger.memory_halvings
    rows = (*before, *s.job.chosen, *(choices.chosen if choices else ()))
    if choices is not None and halvings:
        rows = (
            *rows,
            Chosen(
                field="training.microBatchSize",
                value=str(micro_batch(s.job, choices, halvings)),
                reason=f"was {choices.micro_batch_size}; halved after memory ran out"
                f" ({halvings} of 2 times), the global batch stays {choices.global_batch_size}",
            ),
        )
    newest = {row.field: row for row in rows}
    return tuple(newest.values())[-32:]


def _output(s: Situation) -> OutputStatus | None:
    done = s.observed.published
    if done is None:
        return None
    reports = [end.report for end in (s.child.ends if s.child else ()) if end.report]
    digests = [report.output_digest for report in reports if report.output_digest]
    return OutputStatus(
        uri=done.uri,
        digest=digests[0] if digests else None,
        evaluation=dict(list(done.evaluation_after.items())[:32]),
    )
