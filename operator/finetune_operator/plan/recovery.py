"""Ends: what they mean for the ledger, and when the next attempt may start."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from finetune_api.checkpoint import CheckpointRef, Claim
from finetune_api.reports import Goodput
from finetune_api.status import FailureClass, Resume
from finetune_operator.failures import (
    HALVINGS,
    INTERRUPTED_STARTS,
    LONGEST_BACK_OFF,
    NEVER_TRAINED,
    NO_ROOM,
    ROOM,
    ROWS,
    WITHOUT_PROGRESS,
    Cause,
    Row,
    back_off,
    classify,
    of_class,
)
from finetune_operator.observed import ChildState, ProcessEnd, Waiting
from finetune_operator.plan.attempt import micro_batch
from finetune_operator.plan.reached import heard, reached, without_progress
from finetune_operator.plan.situation import (
    Situation,
    claim_of,
    later,
    newest,
    text_of,
    time_of,
)
from finetune_operator.steps import Step, Stop, Wait


def learned(s: Situation) -> Situation:
    """Take over the child's uid, the newest verified checkpoint, and how the attempt began."""
    ledger, child = s.ledger, s.child
    if ledger.outcome is not None:
        return s
    if ledger.child is not None and child is not None and not ledger.child.uid:
        s = s.with_ledger(child=ledger.child.model_copy(update={"uid": child.uid}))
    return _resumed(_checkpointed(s))


def _checkpointed(s: Situation) -> Situation:
    """Keep the newest checkpoint that is known to be verified and was not rejected since."""
    progress, claim, child = s.observed.progress, s.observed.claim, s.child
    known = [s.ledger.checkpoint, s.observed.checkpoint]
    if progress is not None and progress.job_uid == s.job.uid:
        known.append(progress.checkpoint)
    known += [end.report.checkpoint for end in (child.ends if child else ()) if end.report]
    rejected: set[str] = set()
    if claim is not None and claim.job_uid == s.job.uid:
        known = [ref for ref in known if ref is None or not _passed_over(ref, claim)]
        known.append(claim.resumes_from)
        rejected = {entry.path for entry in claim.rejected}
    kept = newest(*(ref for ref in known if ref is not None and ref.path not in rejected))
    return s if kept == s.ledger.checkpoint else s.with_ledger(checkpoint=kept)


def _passed_over(ref: CheckpointRef, claim: Claim) -> bool:
    """Tell whether an attempt has begun with an older checkpoint, so that this one was no good.

    Its report names those that it rejected; what is heard of it while it runs does not.
    """
    start = claim.resumes_from
    if start is None or claim_of(ref) >= claim.sequence:
        return False
    return newest(ref, start) != start


def _resumed(s: Situation) -> Situation:
    """Correct the newest resume entry by what the attempt really resumed from."""
    claim, resumes = s.observed.claim, s.ledger.resumes
    if claim is None or claim.job_uid != s.job.uid or not resumes:
        return s
    entry = resumes[-1]
    if not entry.attempt == claim.attempt == s.ledger.attempt:
        return s
    start = claim.resumes_from
    step = start.step if start else 0
    # What was saved was reached, whether it was heard of in time or not.
    reached = max(entry.stopped_at, step)
    seen = entry.model_copy(
        update={
            "stopped_at": reached,
            "from_step": step,
            "digest": start.digest if start else None,
            "lost_steps": reached - step,
            "rejected": tuple(f"{r.path}: {r.reason}"[:256] for r in claim.rejected[:3]),
        }
    )
    return s if seen == entry else s.with_ledger(resumes=(*resumes[:-1], seen))


def ended(s: Situation) -> Situation:
    """Bring the end of the child that the ledger speaks of into the ledger."""
    ledger, child = s.ledger, s.child
    if ledger.outcome is not None or ledger.child is None:
        return s
    if child is None:
        if not ledger.child.uid:
            return s
        return _after(s, _written(s, ledger.stopping or "LostInfrastructure", s.now))
    lost_at = s.given_up(child)
    if not child.over and not child.withdrawn and (lost_at is None or s.now < lost_at):
        return s
    child = _dated(s, child)
    cause = classify(s.stage, _all_ends(s, child))
    if cause is not None and ledger.stopping is not None and not cause.own_word:
        cause = _written(s, ledger.stopping, cause.at, cause.process)
    if cause is not None and cause.class_ == "CommunicationLost" and child.roomless is not None:
        cause = _in_vain(cause, child.roomless)
    if cause is None and s.stage == "prepare" and s.observed.choices is None:
        cause = replace(
            of_class("Crashed", s.now), message="the preparation ended, but left no choices"
        )
    s = _spent(s, child)
    return _succeeded(s) if cause is None else _after(s, cause)


def _dated(s: Situation, child: ChildState) -> ChildState:
    """Let an end of which nobody says when it was be now: this is the first that counts it."""
    ends = (replace(end, at=s.now) if end.undated else end for end in child.ends)
    return replace(child, ends=tuple(ends))


def _written(s: Situation, class_: FailureClass, at: datetime, process: str = "") -> Cause:
    """Return the cause of an end that we brought about, in the words that were written down before.

    What was known when it was told to end (why it did not start, say) is not to be seen of it any
    more once it has ended.
    """
    cause, said = of_class(class_, at, process=process), s.ledger.last_failure
    if s.ledger.stopping is None or said is None or said.class_ != class_:
        return cause
    return replace(cause, code=said.code, message=said.message, fix=said.fix)


def _in_vain(cause: Cause, roomless: Waiting) -> Cause:
    """Return why an attempt ended of which some gave up waiting for those that had no room."""
    text = "not all processes ran, and those that did waited in vain;"
    text += f" {roomless.reason}: {roomless.message}"
    found = of_class("StartTimeout", cause.at, message=text, process=cause.process)
    return replace(found, code=NO_ROOM.code, fix=NO_ROOM.fix)


def _all_ends(s: Situation, child: ChildState) -> tuple[ProcessEnd, ...]:
    """The ends that were seen, and one for the processes that vanished unseen.

    Those that were told to end because another had crashed explain nothing by not doing so.
    """
    if child.ends and (len(child.ends) >= child.processes or not child.ran):
        return child.ends
    cause = classify(s.stage, child.ends)
    by_itself = cause is not None and (child.stopped_at is None or cause.at <= child.stopped_at)
    if cause is not None and by_itself and cause.class_ == "Crashed":
        return child.ends
    return (*child.ends, ProcessEnd(name=child.name, at=s.now))


def _spent(s: Situation, child: ChildState) -> Situation:
    """Add the time of an attempt that has ended."""
    if s.stage != "train":
        return s
    last = max((end.at for end in child.ends), default=s.now)
    active = 0.0
    if child.active_since is not None:
        active = max(0.0, (last - child.active_since).total_seconds())
    reports = [end.report for end in child.ends if end.report and end.report.stage == "train"]
    seen = [report.goodput for report in reports if report.node == 0]
    progress = heard(s)
    if not seen and progress is not None:
        seen = [progress.goodput]
    total = s.ledger.goodput
    if seen:
        total = Goodput(
            **{
                name: getattr(total, name) + getattr(seen[0], name)
                for name in ("productive", "starting", "saving", "evaluating", "lost")
            }
        )
    return s.with_ledger(active_seconds=s.ledger.active_seconds + active, goodput=total)


def _succeeded(s: Situation) -> Situation:
    """Go on to the next stage, all counters of the last one behind us."""
    anew: dict[str, Any] = {
        "attempts_without_progress": 0,
        "interrupted_starts": 0,
        "not_before": None,
        "stopping": None,
    }
    if s.stage == "prepare":
        made = s.observed.choices
        return s.with_ledger(
            prepared=True,
            # Why each was chosen stands beside the others' reasons, for people.
            choices=made.model_copy(update={"chosen": ()}) if made is not None else None,
            attempt=s.ledger.attempt + 1,
            child=s.named("train", s.ledger.attempt + 1),
            tries=0,
            **anew,
        )
    if s.stage == "train":
        return s.with_ledger(trained=True, child=s.named("publish", 1), tries=1, **anew)
    return s.with_ledger(outcome="Succeeded", finished_at=text_of(s.now), **anew)


def _after(s: Situation, cause: Cause) -> Situation:
    """Count an end that was no success; then fail, or name the next try."""
    ledger = s.ledger
    counted: dict[str, Any] = {
        "failures": ledger.failures + (cause.budget == "failure"),
        "preemptions": ledger.preemptions + (cause.budget == "preemption"),
        "suspensions": ledger.suspensions + (s.stage == "train" and cause.class_ == "Stopped"),
        "stopping": None,
    }
    counted |= without_progress(s, cause)
    if cause.class_ != "Stopped":
        counted["last_failure"] = cause.failure(text_of(cause.at))
    s = s.with_ledger(**counted)
    final = _final(s, cause)
    if final is not None:
        failure = final.failure(text_of(cause.at))
        return s.with_ledger(outcome="Failed", finished_at=text_of(s.now), last_failure=failure)
    if _halves(s, cause):
        s = s.with_ledger(memory_halvings=s.ledger.memory_halvings + 1)
    return next_try(s, cause.class_, cause)


def _halves(s: Situation, cause: Cause) -> bool:
    """The next attempt can use less memory by a micro batch that was ours to choose."""
    choices = s.observed.choices
    if cause.class_ != "OutOfMemory" or s.stage != "train" or choices is None:
        return False
    if not choices.micro_batch_chosen or s.ledger.memory_halvings >= HALVINGS:
        return False
    return micro_batch(s.job, choices, s.ledger.memory_halvings) > 1


def _final(s: Situation, cause: Cause) -> Cause | None:
    """Return the cause with which the job fails, or None where another try is due."""
    ledger, recovery = s.ledger, s.observed.live.recovery
    on_cpu = s.job.spec.resources.accelerator.device == "cpu"
    same_again = cause.device or (cause.class_ == "OutOfMemory" and on_cpu and s.stage == "train")
    if (same_again or not cause.retried) and not _halves(s, cause):
        return cause
    if cause.budget == "failure" and ledger.failures > recovery.max_failures:
        count = f"failure {ledger.failures}, and recovery.maxFailures is {recovery.max_failures}"
        return replace(cause, message=f"{cause.message[:900]} ({count})")
    limit = recovery.max_preemptions
    if cause.budget == "preemption" and limit is not None and ledger.preemptions > limit:
        return _instead(cause, "TooManyPreemptions", ROWS["TooManyPreemptions"])
    if s.stage != "train":
        return None
    if ledger.attempts_without_progress - ledger.interrupted_starts >= WITHOUT_PROGRESS:
        return _instead(cause, "NoProgress", ROWS["NoProgress"])
    if ledger.interrupted_starts >= INTERRUPTED_STARTS:
        return _instead(cause, "NoProgress", NEVER_TRAINED)
    return None


def _instead(cause: Cause, class_: FailureClass, row: Row) -> Cause:
    """Name what ended the job, and keep the last cause in its message and fix."""
    return replace(
        of_class(class_, cause.at),
        code=row.code,
        message=f"{row.message}; the last: {cause.message}",
        fix=row.fix + (f"; the last attempt: {cause.fix}" if cause.fix else ""),
        exit_code=cause.exit_code,
        process=cause.process,
    )


def next_try(s: Situation, class_: FailureClass, cause: Cause | None = None) -> Situation:
    """Name the next try of the stage, and for an attempt what it will resume from."""
    ledger = s.ledger
    waits = cause is not None and class_ != "Stopped"
    number = (ledger.attempt if s.stage == "train" else ledger.tries) + 1
    # Only what came to nothing in a row counts: an attempt of which no checkpoint was heard follows
    # others that saved some.
    seconds = back_off(s.job.uid, number, ledger.attempts_without_progress)
    not_before = text_of(later(s.now, seconds)) if waits else None
    if s.stage != "train":
        return s.with_ledger(tries=number, child=s.named(s.stage, number), not_before=not_before)
    kept = ledger.checkpoint
    step = kept.step if kept else 0
    stopped_at = max(step, reached(s))
    entry = Resume(
        attempt=number,
        cause=class_,
        stopped_at=stopped_at,
        from_step=step,
        digest=kept.digest if kept else None,
        lost_steps=stopped_at - step,
        time=text_of(s.now),
    )
    return s.with_ledger(
        attempt=number,
        child=s.named("train", number),
        resumes=(*ledger.resumes, entry)[-10:],
        not_before=not_before,
    )


def told_to_stop(s: Situation) -> Situation:
    """Write down why the running child is to end, before it is told so."""
    ledger = s.ledger
    if ledger.outcome is not None or ledger.stopping is not None:
        return s
    child, live = s.alive, s.observed.live
    limit = live.active_deadline_seconds
    if child is None:
        spent = limit is not None and s.stage == "train" and ledger.active_seconds >= limit
        started = s.child is not None
        return _after(s, of_class("DeadlineExceeded", s.now)) if spent and not started else s
    if live.suspend and s.given_up(child) is None:
        # One that was ending before that goes on to its end, whose cause counts.
        return s.with_ledger(stopping="Stopped")
    if child.replaced:
        cause = classify(s.stage, child.ends) or of_class("LostInfrastructure", s.now)
        text = f"{cause.message[:900]}; another took the place of {child.replaced}"
        failure = replace(cause, message=text).failure(text_of(s.now))
        return s.with_ledger(stopping=cause.class_, last_failure=failure)
    if s.deadline is not None and s.now >= s.deadline:
        return s.with_ledger(stopping="DeadlineExceeded")
    if s.start_deadline is not None and s.now >= s.start_deadline:
        cause = _not_started(s, child)
        return s.with_ledger(stopping="StartTimeout", last_failure=cause.failure(text_of(s.now)))
    return s


def _not_started(s: Situation, child: ChildState) -> Cause:
    """Return why a child is given up of which not all processes ran in time."""
    limit = s.observed.live.recovery.start_timeout
    why = f"{child.waiting.reason}: {child.waiting.message}" if child.waiting else ""
    text = f"not all processes ran within {limit}; {why}".rstrip("; ")
    cause = of_class("StartTimeout", s.now, message=text)
    if child.waiting is not None and child.waiting.reason in ROOM:
        return replace(cause, code=NO_ROOM.code, fix=NO_ROOM.fix)
    return cause


def stop(s: Situation) -> Step | None:
    """End the child whose stopping the ledger holds."""
    child, reason = s.alive, s.ledger.stopping
    if child is None or reason is None:
        return None
    return Stop(child.name, reason, of_class(reason, s.now).message, s.given_up(child))


def stragglers(s: Situation) -> Step | None:
    """End what is left of earlier tries, and wait for it before anything new starts.

    Where the volume can be written by several nodes, a try of which all processes were told to end
    and gave no sign for longer than their grace period holds nothing up: should it come back, the
    claims fence it. Elsewhere it holds the volume, and only somebody who knows that its node is
    gone may remove it.
    """
    for child in s.observed.strangers(s.ledger.child):
        if child.held:
            text = f"{child.name} was suspended by somebody else; training goes on when it is"
            text += " let go on, or deleted"
            if child.emptied:
                text = f"somebody else has set {child.emptied} of {child.name} to 0; training goes"
                text += f" on when it is set back, or {child.name} is deleted"
            return Wait(None, "Recovering", "SuspendedByOthers", text)
        lost_at = s.lost_at(child)
        if lost_at is None:
            return Stop(child.name, "LostInfrastructure", "its try has ended")
        if s.now < lost_at:
            text = f"{child.name} is ending"
            return Wait(lost_at, "Recovering", "WaitingForLastAttempt", text)
        if not s.observed.workspace.shared:
            return Wait(
                None,
                "Recovering",
                "VolumeHeldByLostNode",
                f"{child.name} gives no sign, and its volume can be used by one node only; once its"
                " node is known to be off, remove its processes by force",
            )
    return None


def workspace(s: Situation) -> Step | None:
    """Wait for a workspace that cannot be used yet."""
    problem = s.observed.workspace.problem
    if problem is None or s.alive is not None:
        return None
    return Wait(None, "Accepted", problem.reason, problem.message)


def wait_for_back_off(s: Situation) -> Step | None:
    """Wait until the next try may start."""
    until = time_of(s.ledger.not_before)
    if until is None or s.now >= until or s.child is not None:
        return None
    if until > later(s.now, LONGEST_BACK_OFF + 1):
        return None  # written by a clock that was ahead; nothing is ever waited for that long
    kept = s.ledger.checkpoint
    if s.stage != "train":
        return Wait(until, "Recovering", "BackOff", f"{s.stage} is tried again at {text_of(until)}")
    where = f"will resume from step {kept.step}" if kept else "will start at step 0"
    return Wait(until, "Recovering", "BackOff", f"attempt {s.ledger.attempt} {where}")
