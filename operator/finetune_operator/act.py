"""Carrying out a step on the cluster: objects are created once, told to end, never changed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.resolved import Attempt, Choices, Stage
from finetune_api.status import Child, ConditionType, JobStatus
from finetune_operator import metrics
from finetune_operator.acceptance import Accepted, ProfileMissing
from finetune_operator.kube import (
    CLAIMS,
    Forbidden,
    Invalid,
    Kube,
    Object,
    is_ending,
    uid_of,
)
from finetune_operator.observe import Around, Observer, workspace_problem
from finetune_operator.observed import ChildState, Observed
from finetune_operator.ownership import NameTaken, create_owned
from finetune_operator.render.config import stage_config
from finetune_operator.steps import (
    Finish,
    StartAttempt,
    StartPrepare,
    StartPublish,
    Step,
    Stop,
    Wait,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deed:
    """What a step is carried out with."""

    body: Object
    accepted: Accepted
    status: JobStatus
    observed: Observed
    around: Around
    observer: Observer


async def act(kube: Kube, step: Step, deed: Deed) -> Step:
    """Carry out a step and return it, or the wait that it turned into.

    What the cluster refuses becomes a condition with the cluster's own words; what has no answer is
    raised, and the same step comes again.
    """
    try:
        match step:
            case StartPrepare(child=child):
                await _make_workspace(kube, deed)
                await _start(kube, deed, child, "prepare", None)
            case StartAttempt(child=child, attempt=attempt):
                await _start(kube, deed, child, "train", attempt)
            case StartPublish(child=child):
                await _start(kube, deed, child, "publish", None)
            case Stop(child=name):
                await _stop(kube, deed, name, step)
            case Finish(expired=True):
                log.info("the time of the job is over, it is removed")
                await kube.delete(deed.body)
            case _:
                pass
    except NameTaken as taken:
        return Wait(None, _condition(step), "NameTaken", taken.message)
    except ProfileMissing as missing:
        return Wait(None, _condition(step), "ProfileMissing", str(missing))
    except Forbidden as error:
        reason = "QuotaExceeded" if error.for_quota else "CreationForbidden"
        return Wait(None, _condition(step), reason, error.message)
    except Invalid as error:
        return Wait(None, _condition(step), "CreationRefused", error.message)
    return step


def _condition(step: Step) -> ConditionType:
    """Return the condition that says why a step cannot be carried out."""
    match step:
        case StartPrepare():
            return "Prepared"
        case StartAttempt(attempt=attempt) if attempt.number > 1:
            return "Recovering"
        case _:
            return "Running"


async def _make_workspace(kube: Kube, deed: Deed) -> None:
    """Make the claim of the job's folder where there is none."""
    made = deed.around.workspace_to_make
    if made is None:
        return
    try:
        await create_owned(kube, made, deed.accepted.job.uid)
    except NameTaken:
        # One that we made and that nobody owns is the usual case after a restart: it is looked at
        # as any other the next time.
        found = await kube.find(CLAIMS, deed.accepted.job.namespace, made["metadata"]["name"])
        if found is None or workspace_problem(found, deed.accepted.job.uid, made=True):
            raise


async def _start(
    kube: Kube, deed: Deed, child: Child, stage: Stage, attempt: Attempt | None
) -> None:
    """Create what a child needs, and the child last."""
    job = deed.accepted.job
    number = attempt.number if attempt else max(1, deed.status.tries)
    choices: Choices | None = deed.observed.choices
    told = stage_config(job, stage, choices, attempt)
    objects = await deed.observer.render(deed.accepted, deed.around, told, child, number)
    for body in objects:
        await create_owned(kube, body, job.uid)
    metrics.CHILDREN_CREATED.labels(stage).inc()
    log.info("started %s", child.name)


async def _stop(kube: Kube, deed: Deed, name: str, step: Stop) -> None:
    """Tell a child to end. It stays until its pods, which get SIGTERM, are gone. Never by force."""
    for body in deed.around.children:
        if body["metadata"]["name"] != name or is_ending(body):
            continue
        await kube.delete(body, "Foreground")
        metrics.CHILDREN_STOPPED.labels(step.reason).inc()
        log.info("told %s to end: %s", name, step.message)
        return
    for pod in deed.around.orphans(name):
        if not is_ending(pod):
            await kube.delete(pod)


async def clean(kube: Kube, deed: Deed) -> None:
    """Remove the children whose successor runs; the last one that failed stays for its log."""
    for state in superseded(deed.observed.children, deed.status):
        for body in deed.around.children:
            if uid_of(body) == state.uid and not is_ending(body):
                await kube.delete(body)


def superseded(children: Sequence[ChildState], status: JobStatus) -> list[ChildState]:
    """Return the children that can be removed: all that have ended but the last that failed.

    One whose pods went unseen failed too: an operator that has just begun keeps what the one before
    it kept.
    """
    wanted = status.child
    current = next(
        (c for c in children if wanted and (c.name, c.uid) == (wanted.name, wanted.uid)), None
    )
    if current is None or not (current.ran or current.ends):
        return []
    over = [c for c in children if c is not current and c.over]
    failed = [c for c in over if c.failed_at is not None or not c.ends]
    kept = max(failed, key=lambda c: str(c.failed_at or ""), default=None)
    return [child for child in over if child is not kept]
