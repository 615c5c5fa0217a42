"""What is watched. A handler does two things: keep how a pod ended, and ask for a look at its job."""

from __future__ import annotations

from collections import OrderedDict
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
    Object,
    Resource,
    is_ending,
    login,
    uid_of,
)
from finetune_operator.queue import Key

Enqueue = Callable[[Key, float], None]
"""(job, seconds until it is looked at)"""
Hear = Callable[[str, str], None]
"""(uid of the job, version of a child of it that a watch has told of)"""
Handler = Callable[..., Awaitable[None]]

LIMIT = 16_384
"""Pods whose last state is kept."""
BURST = 0.2
"""Seconds in which changes of children are gathered into one look; an end is looked at at once."""
ECHO = 1.0
"""Seconds after which a job is looked at that has changed by our own writing."""
_KEPT = (
    "name",
    "namespace",
    "uid",
    "labels",
    "annotations",
    "ownerReferences",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)


class LastSeen:
    """The last that was seen of pods that have ended or are going, by uid; the oldest are dropped.

    A pod that is deleted takes the account of its end with it. Its last change, which the watch
    delivers, has it; so it is kept here until the job's ledger has it. Beside them stands the newest
    version of each job's children that was told of: a look must not read an older state.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        """Begin empty."""
        self._limit = limit
        self._pods: OrderedDict[str, Object] = OrderedDict()
        self._jobs: dict[str, set[str]] = {}
        self._heard: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._pods)

    def tells(self, pod: Mapping[str, Any], deleted: bool) -> bool:
        """Tell whether a pod has ended, or begun to, in a way that was not kept yet.

        The controller of a pod that has ended writes to it once more, and in the end it is removed:
        neither says anything new of how it ended.
        """
        if not is_worth_keeping(pod, deleted):
            return False
        before = self._pods.get(uid_of(pod))
        if before is None:
            return True
        if deleted:
            return before["status"].get("phase") not in ("Succeeded", "Failed")
        now = trimmed(pod)
        told = (now["metadata"].get("deletionTimestamp"), now["status"])
        return told != (before["metadata"].get("deletionTimestamp"), before["status"])

    def keep(self, pod: Mapping[str, Any]) -> None:
        """Keep the newest state of a pod."""
        uid = uid_of(pod)
        if not uid:
            return
        self._pods[uid] = trimmed(pod)
        self._pods.move_to_end(uid)
        self._jobs.setdefault(_job_uid(pod), set()).add(uid)
        while len(self._pods) > self._limit:
            self._drop(next(iter(self._pods)))

    def hear(self, job_uid: str, version: str) -> None:
        """Keep the newest version of a job's children; one that is no number cannot be compared."""
        if not job_uid or not version.isdecimal():
            return
        self._heard[job_uid] = max(int(version), self._heard.get(job_uid, 0))
        self._heard.move_to_end(job_uid)
        while len(self._heard) > self._limit:
            self._heard.popitem(last=False)

    def newest(self, job_uid: str) -> int:
        """Return the newest version of a job's children that was told of; 0: none was."""
        return self._heard.get(job_uid, 0)

    def of_job(self, job_uid: str) -> list[Object]:
        """Return the pods of one job, by name."""
        found = [self._pods[uid] for uid in self._jobs.get(job_uid, ())]
        return sorted(found, key=lambda pod: (str(pod["metadata"].get("name")), uid_of(pod)))

    def forget(self, job_uid: str) -> None:
        """Drop the pods of a job that is gone, or that has ended."""
        self._heard.pop(job_uid, None)
        for uid in tuple(self._jobs.get(job_uid, ())):
            self._drop(uid)

    def _drop(self, uid: str) -> None:
        job_uid = _job_uid(self._pods.pop(uid))
        pods = self._jobs[job_uid]
        pods.discard(uid)
        if not pods:
            del self._jobs[job_uid]


def trimmed(pod: Mapping[str, Any]) -> Object:
    """Return what tells how a pod ended, without its template."""
    metadata = pod.get("metadata") or {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {name: metadata[name] for name in _KEPT if name in metadata},
        "spec": {
            name: pod["spec"][name]
            for name in ("nodeName", "terminationGracePeriodSeconds")
            if name in (pod.get("spec") or {})
        },
        "status": dict(pod.get("status") or {}),
    }


def _job_uid(pod: Mapping[str, Any]) -> str:
    return str(((pod.get("metadata") or {}).get("labels") or {}).get(LABEL_UID) or "")


def is_worth_keeping(pod: Mapping[str, Any], deleted: bool) -> bool:
    """Tell whether a pod may be gone before its job is looked at."""
    phase = (pod.get("status") or {}).get("phase")
    ending = (pod.get("metadata") or {}).get("deletionTimestamp")
    return bool(deleted or ending or phase in ("Succeeded", "Failed"))


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

    @kopf.on.login(registry=registry)
    def log_in(**_: Any) -> kopf.ConnectionInfo:
        return login()

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
