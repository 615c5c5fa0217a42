"""What an attempt is known to have reached, and whether it counts as one without progress."""

from __future__ import annotations

from finetune_api.reports import Progress
from finetune_operator.failures import NO_ROOM, Cause
from finetune_operator.plan.situation import Situation


def without_progress(s: Situation, cause: Cause) -> dict[str, int]:
    """Count attempts in a row that left nothing newer, and those of them that never trained.

    Waiting for room and stopping are no attempts. A try of preparation or publishing that is tried
    again has left nothing.
    """
    ledger, training = s.ledger, s.stage == "train"
    if training and _progressed(s):
        return {"attempts_without_progress": 0, "interrupted_starts": 0}
    if cause.class_ == "Stopped" or (cause.class_, cause.code) == ("StartTimeout", NO_ROOM.code):
        return {}
    interrupted = training and cause.budget == "preemption" and not _trained(s)
    return {
        "attempts_without_progress": ledger.attempts_without_progress + 1,
        "interrupted_starts": ledger.interrupted_starts + interrupted,
    }


def _began(s: Situation) -> int:
    """The step that this attempt began with."""
    resumes = s.ledger.resumes
    return resumes[-1].from_step if resumes and resumes[-1].attempt == s.ledger.attempt else 0


def _progressed(s: Situation) -> bool:
    """A checkpoint was verified that is newer than what this attempt began with."""
    kept = s.ledger.checkpoint
    return kept is not None and kept.step > _began(s)


def _trained(s: Situation) -> bool:
    """At least one step of this attempt is known to have been done.

    Steps are told now and then, their seconds more often: a step that is not finished has none that
    are productive.
    """
    progress, child = heard(s), s.child
    told = [end.report.goodput for end in (child.ends if child else ()) if end.report]
    if progress is not None:
        told.append(progress.goodput)
    return reached(s) > _began(s) or any(seconds.productive > 0 for seconds in told)


def heard(s: Situation) -> Progress | None:
    """What was heard of this attempt itself."""
    seen = s.observed.progress
    ours = seen is not None and (seen.job_uid, seen.attempt) == (s.job.uid, s.ledger.attempt)
    return seen if ours else None


def reached(s: Situation) -> int:
    """The last step that the attempt is known to have reached."""
    progress, child = heard(s), s.child
    steps = [end.report.step for end in (child.ends if child else ()) if end.report]
    if progress is not None:
        steps.append(progress.step)
    return max(steps, default=0)
