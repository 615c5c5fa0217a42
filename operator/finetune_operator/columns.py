"""The columns of ``kubectl get``: how far training is, and short words for the rest."""

from __future__ import annotations

from finetune_api.quantity import format_duration
from finetune_api.status import (
    Condition,
    ConditionType,
    JobProgress,
    JobStatus,
    Phase,
    Summary,
)
from finetune_operator.plan.situation import Situation

_SAYS_NO_MORE = ("Pending", "Starting", "Training", "Trained")
_EXPLAINED_BY: dict[Phase, ConditionType] = {
    "Pending": "Prepared",
    "Preparing": "Prepared",
    "Starting": "Running",
    "Publishing": "Running",
    "Queued": "Queued",
    "Recovering": "Recovering",
    "Suspended": "Suspended",
    "Failed": "Failed",
}
"""The condition whose reason says more than the phase does."""
_MAY_BACK_OFF: tuple[Phase, ...] = ("Pending", "Preparing", "Publishing")
"""Stages that are tried again without a phase of their own for it."""


def progress(s: Situation, before: JobStatus) -> JobProgress | None:
    """Return what was heard last; of training that is done, what it said at its end."""
    if s.ledger.trained:
        return _last_step(s, before.progress) or before.progress
    seen = s.observed.progress
    if seen is None or seen.job_uid != s.job.uid or not 1 <= s.ledger.attempt == seen.attempt:
        return before.progress
    return JobProgress(
        step=seen.step,
        total_steps=seen.total_steps,
        epoch=seen.epoch,
        loss=seen.loss,
        tokens_per_second=seen.tokens_per_second,
        eta_seconds=seen.eta_seconds,
    )


def _last_step(s: Situation, before: JobProgress | None) -> JobProgress | None:
    """Return where training ended, while its processes' reports are there."""
    told, choices = s.observed.progress, s.observed.choices
    ends = (end.report for child in s.observed.children for end in child.ends if end.report)
    done = [one for one in ends if one.stage == "train" and one.attempt == s.ledger.attempt]
    if not done or choices is None:
        return None
    last = max(done, key=lambda report: (report.step, report.loss is not None))
    return JobProgress(
        step=last.step,
        total_steps=choices.total_steps,
        epoch=round(last.step / choices.steps_per_epoch, 4),
        loss=last.loss if last.loss is not None or before is None else before.loss,
        tokens_per_second=told.tokens_per_second if told else 0,
    )


def _reason(now: Phase, dated: tuple[Condition, ...]) -> str:
    """Return what says more than the phase does; empty where the phase says it all."""
    by_type = {condition.type: condition for condition in dated}
    said: list[Condition | None] = []
    if now in _EXPLAINED_BY:
        said.append(by_type.get(_EXPLAINED_BY[now]))
    again = by_type.get("Recovering")
    if now in _MAY_BACK_OFF and again is not None and again.status == "True":
        said.append(again)
    found = (one.reason for one in said if one is not None and one.reason not in _SAYS_NO_MORE)
    return next(found, "")


def summary(
    s: Situation, now: Phase, dated: tuple[Condition, ...], progress: JobProgress | None
) -> Summary:
    """Return the words of the columns; a phase that explains itself has no reason."""
    spec = s.job.spec
    done, loss, eta = "", "", ""
    if progress is not None and progress.total_steps:
        done = f"{min(100, 100 * progress.step // progress.total_steps)}%"
        loss = f"{progress.loss:.3f}"[:32] if progress.loss is not None else ""
        if now == "Running" and progress.eta_seconds is not None:
            eta = format_duration(progress.eta_seconds)[:32]
    if s.ledger.trained:
        done = "100%"  # whatever was heard last, and where training was stopped early too
    child, gpus = s.alive, None
    if s.stage == "train" and child is not None and child.active_since is not None:
        gpus = spec.resources.nodes * spec.resources.accelerator.per_node or None
    methods = [name for name in type(spec.method).model_fields if getattr(spec.method, name)]
    return Summary(
        reason=_reason(now, dated),
        progress=done,
        loss=loss,
        eta=eta,
        gpus=gpus,
        restarts=max(0, s.ledger.attempt - 1 - s.ledger.suspensions) or None,
        model=spec.model.uri.rstrip("/").rpartition("/")[2][:256],
        method=methods[0] if methods else "",
    )
