"""What is watched. A handler does two things: keep how a pod ended, and ask for a look at its job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import kopf

from finetune_api.names import LABEL_JOB, LABEL_UID
from finetune_operator import metrics
from finetune_operator.known_jobs import KnownJobs
from finetune_operator.kube import (
    BATCH_JOBS,
    CLAIMS,
    FINETUNE_JOBS,
    PODS,
    PROFILES,
    Resource,
    is_ending,
)
from finetune_operator.last_seen import LastSeen, is_worth_keeping
from finetune_operator.logins import Logins
from finetune_operator.queue import Key

Enqueue = Callable[[Key, float], None]
"""(job, seconds until it is looked at)"""
Hear = Callable[[str, str], None]
"""(uid of the job, version of a child of it that a watch has told of)"""
Handler = Callable[..., Awaitable[None]]

BURST = 0.2
"""Seconds in which changes of children are gathered into one look; an end is looked at at once."""
BACKOFF = 5.0
"""Seconds after which credentials that could not be read are read again."""
ECHO = 1.0
"""Seconds after which a job is looked at that has changed by our own writing."""


def make_registry(
    *,
    enqueue: Enqueue,
    profile_changed: Callable[[], None],
    seen: LastSeen,
    known: KnownJobs,
    echoed: Callable[[Key, str], None] | None = None,
) -> kopf.OperatorRegistry:
    """Return the handlers of the kinds that every cluster has.

    ``known`` is told how jobs are. They do no I/O, and what one object does to them hurts no other. All are coroutines, which the
    library calls where they are: anything else it would send to a thread. ``echoed`` is told
    of versions of jobs that are most likely our own; without it they are looked at after a second.
    """
    registry = _empty_registry()
    child_changed = _child_changed(enqueue, seen.hear)
    pod_ended = _child_changed(enqueue, seen.hear, wait=0.0)

    async def job_changed(
        body: kopf.Body, event: Mapping[str, Any], namespace: str | None, name: str | None, **_: Any
    ) -> None:
        metrics.WATCH_EVENTS.labels(FINETUNE_JOBS.kind).inc()
        if not namespace or not name:
            return
        key, version = Key(namespace, name), str(body.metadata.get("resourceVersion"))
        if event.get("type") == "DELETED":
            known.forget(key)
        else:
            known.learn(event["object"])
        if not is_echo(body):
            enqueue(key, 0.0)
        elif echoed is None:
            enqueue(key, ECHO)
        else:
            echoed(key, version)

    async def profile_seen(**_: Any) -> None:
        metrics.WATCH_EVENTS.labels(PROFILES.kind).inc()
        profile_changed()

    async def pod_changed(body: kopf.Body, type: str | None, **rest: Any) -> None:  # noqa: A002
        deleted = type == "DELETED"
        handler = pod_ended if seen.tells(body, deleted) else child_changed
        if is_worth_keeping(body, deleted):
            seen.keep(body)
        await handler(body=body, type=type, **rest)

    _watch(registry, FINETUNE_JOBS, job_changed)
    _watch(registry, PROFILES, profile_seen)
    _watch(registry, PODS, pod_changed, labels={LABEL_UID: kopf.PRESENT})
    for resource in (BATCH_JOBS, CLAIMS):
        _watch(registry, resource, child_changed, labels={LABEL_JOB: kopf.PRESENT})
    return registry


def children_registry(resource: Resource, enqueue: Enqueue, hear: Hear) -> kopf.OperatorRegistry:
    """Return the handlers of one kind of children that the cluster may not have."""
    registry = _empty_registry()
    _watch(registry, resource, _child_changed(enqueue, hear), labels={LABEL_JOB: kopf.PRESENT})
    return registry


def _empty_registry() -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    logins = Logins()

    @kopf.on.login(registry=registry, backoff=BACKOFF)
    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        return await logins()

    return registry


def _watch(
    registry: kopf.OperatorRegistry,
    resource: Resource,
    handler: Handler,
    **filters: Any,
) -> None:
    kopf.on.event(resource.group, resource.version, resource.plural, registry=registry, **filters)(
        handler
    )


def is_echo(job: Mapping[str, Any]) -> bool:
    """Tell whether a change of a job is most likely our own: its spec was looked at already."""
    metadata, status = job.get("metadata") or {}, job.get("status") or {}
    seen = status.get("observedGeneration")
    return bool(seen and seen == metadata.get("generation") and not is_ending(job))


def _child_changed(enqueue: Enqueue, hear: Hear, wait: float = BURST) -> Handler:
    """Return what asks for a look at the job of a child, so many seconds later."""

    async def child_changed(body: kopf.Body, namespace: str | None, **_: Any) -> None:
        metrics.WATCH_EVENTS.labels(str(body.get("kind") or "")[:64]).inc()
        labels = body.metadata.labels or {}
        job, version = labels.get(LABEL_JOB), body.metadata.get("resourceVersion")
        hear(str(labels.get(LABEL_UID) or ""), str(version or ""))
        if namespace and job:
            enqueue(Key(namespace, job), wait)

    return child_changed
