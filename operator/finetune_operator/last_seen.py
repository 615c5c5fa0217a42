"""How pods ended, as a watch has told it, and the newest version of each job's children."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.names import (
    LABEL_ATTEMPT,
    LABEL_JOB,
    LABEL_MANAGED_BY,
    LABEL_STAGE,
    LABEL_UID,
)
from finetune_operator.endings import REPORT_LIMIT, condition, container_status
from finetune_operator.kube import Object, owner_of, uid_of
from finetune_operator.ownership import CHILD_LABELS
from finetune_operator.queue import Key
from finetune_operator.render.indexed_job import INDEX_ANNOTATION
from finetune_operator.render.pytorch_job import INDEX_LABEL
from finetune_operator.resolve.paths import look

LIMIT = 16_384
"""Pods whose last state is kept."""
ROOM = 48 * 1024 * 1024
"""Bytes of what is kept of all pods."""
LARGEST = 32 * 1024
"""Bytes of what is kept of one pod; none that a kubelet ended comes near."""
_WORDS = 2048
"""Characters of a message that are for people."""
_METADATA = (
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_LABELS = (
    LABEL_JOB,
    LABEL_UID,
    LABEL_STAGE,
    LABEL_ATTEMPT,
    LABEL_MANAGED_BY,
    INDEX_LABEL,
    INDEX_ANNOTATION,
    *CHILD_LABELS,
)
_CONDITIONS = ("DisruptionTarget", "Ready", "PodScheduled")
_OWNER = ("apiVersion", "kind", "name", "uid", "controller")
_STATES = {
    "running": ("startedAt",),
    "terminated": ("exitCode", "reason", "message", "startedAt", "finishedAt"),
}


@dataclass
class _Namespace:
    """What is kept of the pods of one namespace, the oldest first."""

    pods: OrderedDict[str, tuple[Key, str, bytes]] = field(default_factory=OrderedDict)
    """By uid: its job, the job's uid, and the pod as text, which takes a fifth of the room."""
    size: int = 0


class LastSeen:
    """The last that was seen of pods that have ended or are going; the oldest are dropped.

    A pod that is deleted takes the account of its end with it. Its last change, which the watch
    delivers, has it; so it is kept here until the job's ledger has it. Beside them stands the newest
    version of each job's children that was told of: a look must not read an older state.

    A job is known by its namespace too: what labels say of it, anybody can write in their own.
    Where there is no more room, the namespace that takes the most of it gives way.
    """

    def __init__(self, limit: int = LIMIT, room: int = ROOM) -> None:
        """Begin empty."""
        self._limit, self._room = limit, room
        self._spaces: dict[str, _Namespace] = {}
        self._jobs: dict[Key, set[str]] = {}
        self._count = self._size = 0
        self._heard: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        """How many are kept."""
        return self._count

    @property
    def size(self) -> int:
        """Bytes of what is kept of pods."""
        return self._size

    def tells(self, pod: Mapping[str, Any], deleted: bool) -> bool:
        """Tell whether a pod has ended, or begun to, in a way that was not kept yet.

        The controller of a pod that has ended writes to it once more, and in the end it is removed:
        neither says anything new of how it ended.
        """
        if not is_worth_keeping(pod, deleted):
            return False
        space = self._spaces.get(_key(pod).namespace)
        kept = space.pods.get(uid_of(pod)) if space is not None else None
        if kept is None:
            return True
        before = json.loads(kept[2])
        if deleted:
            return before["status"].get("phase") not in ("Succeeded", "Failed")
        now = trimmed(pod)
        told = (now["metadata"].get("deletionTimestamp"), now["status"])
        return told != (before["metadata"].get("deletionTimestamp"), before["status"])

    def keep(self, pod: Mapping[str, Any]) -> None:
        """Keep the newest state of a pod. One that names no job would never be asked for."""
        key, uid, job_uid = _key(pod), uid_of(pod), _label(pod, LABEL_UID)
        if not uid or not key.name or not job_uid:
            return
        text = json.dumps(trimmed(pod), separators=(",", ":"), ensure_ascii=False)
        data = text.encode(errors="replace")
        self._drop(key.namespace, uid)
        if len(data) > LARGEST:
            return
        space = self._spaces.setdefault(key.namespace, _Namespace())
        space.pods[uid] = (key, job_uid, data)
        self._jobs.setdefault(key, set()).add(uid)
        self._grow(space, 1, len(data))
        while self._count > self._limit or self._size > self._room:
            name = max(self._spaces, key=lambda one: self._spaces[one].size)
            self._drop(name, next(iter(self._spaces[name].pods)))

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

    def of_job(self, key: Key, job_uid: str) -> list[Object]:
        """Return the pods of one job, by name."""
        space = self._spaces.get(key.namespace, _Namespace())
        kept = [space.pods[uid] for uid in self._jobs.get(key, ())]
        found = [json.loads(data) for _, of, data in kept if of == job_uid]
        return sorted(found, key=lambda pod: (str(pod["metadata"].get("name")), uid_of(pod)))

    def forget(self, key: Key, job_uid: str) -> None:
        """Drop what is kept of a job that is gone, or that has ended."""
        self._let_go(key, {job_uid})

    def forget_others(self, key: Key, job_uid: str) -> None:
        """Drop what is kept of other jobs that have had this name; where none has it now, of all.

        Pods go after the job that they belong to, and each tells of it.
        """
        pods = self._spaces.get(key.namespace, _Namespace()).pods
        jobs = {pods[uid][1] for uid in self._jobs.get(key, ())}
        if jobs - {job_uid}:
            self._let_go(key, jobs - {job_uid})

    def _let_go(self, key: Key, jobs: set[str]) -> None:
        for job_uid in jobs:
            self._heard.pop(job_uid, None)
        for uid in tuple(self._jobs.get(key, ())):
            if self._spaces[key.namespace].pods[uid][1] in jobs:
                self._drop(key.namespace, uid)

    def _drop(self, namespace: str, uid: str) -> None:
        space = self._spaces.get(namespace)
        if space is None or uid not in space.pods:
            return
        key, _, data = space.pods.pop(uid)
        self._grow(space, -1, -len(data))
        if not space.pods:
            del self._spaces[namespace]
        pods = self._jobs[key]
        pods.discard(uid)
        if not pods:
            del self._jobs[key]

    def _grow(self, space: _Namespace, count: int, size: int) -> None:
        space.size += size
        self._count += count
        self._size += size


def trimmed(pod: Mapping[str, Any]) -> Object:
    """Return what tells how a pod ended, and whose it was: what is read of a pod that is gone.

    Everything else, its users decide how much that is.
    """
    metadata = pod.get("metadata") or {}
    kept = _only(metadata, _METADATA)
    kept["labels"] = _only(metadata.get("labels"), _LABELS)
    index = _only(metadata.get("annotations"), (INDEX_ANNOTATION,))
    owner = _only(owner_of(pod), _OWNER)
    if index:
        kept["annotations"] = index
    if owner:
        kept["ownerReferences"] = [owner]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": kept, "status": _status(pod)}


def _status(pod: Mapping[str, Any]) -> Object:
    found = _only(pod.get("status"), ("phase", "reason", "message", "startTime"))
    conditions = [it for it in (condition(pod, kind) for kind in _CONDITIONS) if it]
    if conditions:
        names = ("type", "status", "reason", "message", "lastTransitionTime")
        found["conditions"] = [_only(one, names) for one in conditions]
    container = container_status(pod)
    states = {
        state: _only(look(container, "state", state), names, REPORT_LIMIT + 1)
        for state, names in _STATES.items()
        if look(container, "state", state) is not None
    }
    if container:
        found["containerStatuses"] = [{**_only(container, ("name",)), "state": states}]
    return found


def _only(data: Any, names: tuple[str, ...], most: int = _WORDS) -> Object:
    """Return some plain fields of an object; texts are cut off where nobody reads on."""
    if not isinstance(data, Mapping):
        return {}
    return {
        name: data[name][:most] if isinstance(data[name], str) else data[name]
        for name in names
        if isinstance(data.get(name), str | int)
    }


def _label(pod: Mapping[str, Any], name: str) -> str:
    return str(((pod.get("metadata") or {}).get("labels") or {}).get(name) or "")


def _key(pod: Mapping[str, Any]) -> Key:
    namespace = str((pod.get("metadata") or {}).get("namespace") or "")
    return Key(namespace, _label(pod, LABEL_JOB))


def is_worth_keeping(pod: Mapping[str, Any], deleted: bool) -> bool:
    """Tell whether a pod may be gone before its job is looked at."""
    phase = (pod.get("status") or {}).get("phase")
    ending = (pod.get("metadata") or {}).get("deletionTimestamp")
    return bool(deleted or ending or phase in ("Succeeded", "Failed"))
