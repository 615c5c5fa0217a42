"""Acceptance: a job is resolved once, into a ConfigMap that nobody can change.

What training means never changes afterwards; where it runs (the profile's platform part) is read
again for each attempt.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from finetune_api.document import canonical, digest_of
from finetune_api.names import LABEL_PRIORITY, LABEL_QUEUE, workspace_folder
from finetune_api.problem import Problem, Refused
from finetune_api.profile import Platform
from finetune_api.resolved import ResolvedJob
from finetune_api.status import JobStatus
from finetune_operator.known_jobs import Stale
from finetune_operator.kube import (
    CONFIG_MAPS,
    NAMESPACES,
    PROFILES,
    Conflict,
    Kube,
    Object,
)
from finetune_operator.live_spec import changed_spec, within_limits
from finetune_operator.observed import Live
from finetune_operator.ownership import create_exactly, owned_by
from finetune_operator.remembered import Remembered
from finetune_operator.render.owner import labels, metadata
from finetune_operator.render.placement import Placement
from finetune_operator.resolve import resolve
from finetune_operator.resolve.profiles import Profile, read_profile

REMEMBERED = 4096
"""Accepted jobs that are kept."""
ROOM = 12 * 1024 * 1024
"""Bytes of their texts; an object takes some eight times as much, of long lists thirteen."""
FRESH = 30.0
"""Seconds for which a list of profiles may be used again, unless one has changed."""
_FRESH_NAMESPACE = 5.0
"""Seconds for which the labels of a namespace may be used again: jobs come in numbers."""
_QUEUE_LABELS = (LABEL_QUEUE, LABEL_PRIORITY)


@dataclass(frozen=True)
class Accepted:
    """A job that was accepted."""

    job: ResolvedJob
    config_map: str
    digest: str
    """Of everything that was written down. Status has it, which no tenant can write."""
    queue_labels: Mapping[str, str]
    """As they were at acceptance, when the profile was asked: labels can be changed later."""
    was_there: bool = False
    """It had been written down before: what it has begun since may not stand in a ledger."""


class Lost(Exception):
    """The resolved job is gone or was exchanged, and cannot be made again as it was."""


class ProfileMissing(Exception):
    """Nobody says any more where pods of the job may run, and as whom."""

    def __init__(self, name: str) -> None:
        """Say what is missing, and what to do."""
        super().__init__(
            f"FineTuneProfile {name}, with which the job was accepted, does not exist any more or"
            " is not valid; bring it back"
        )


class Profiles:
    """The profiles of the cluster, read again after one has changed."""

    def __init__(self, kube: Kube) -> None:
        """Nothing is read yet."""
        self._kube = kube
        self._at = float("-inf")
        self._of = -1
        self._found: list[Object] = []
        self._reading: asyncio.Task[None] | None = None
        self.changes = 0
        """How often one has changed."""

    def changed(self) -> None:
        """Read them again next time."""
        self.changes += 1
        self._at = float("-inf")

    async def all(self) -> list[Object]:
        """Return all of them, raw; looks at the same time wait for the same answer.

        One that began before the last change is not that answer.
        """
        asked = self.changes
        while self._of < asked or time.monotonic() - self._at > FRESH:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read())
            # A look that is cancelled must not take the list from the others.
            await asyncio.shield(self._reading)
            if self._of >= asked:
                break
        return self._found

    async def _read(self) -> None:
        changes, began = self.changes, time.monotonic()
        self._found = await self._kube.list(PROFILES)
        self._of = changes
        if changes == self.changes:
            self._at = began

    async def named(self, name: str) -> Profile | None:
        """Return one that can be used; None where it is gone or broken."""
        for body in await self.all():
            if body["metadata"]["name"] == name:
                found = read_profile(body)
                return None if found.problems else found
        return None


class Acceptance:
    """Accepts jobs, and remembers those that it has accepted."""

    def __init__(self, kube: Kube, profiles: Profiles, trainer_image: str) -> None:
        """Use this image where a profile names none."""
        self._kube = kube
        self._profiles = profiles
        self._image = trainer_image
        self._known: Remembered[str, Accepted] = Remembered(REMEMBERED, ROOM)
        self._namespaces: dict[str, tuple[float, Mapping[str, str]]] = {}

    @property
    def changes(self) -> int:
        """How often a profile has changed: a refusal from before may not be one any more."""
        return self._profiles.changes

    def forget(self, uid: str) -> None:
        """Drop what is remembered of a job that is gone."""
        self._known.pop(uid)

    async def accepted(self, body: Object, status: JobStatus, *, fresh: bool = True) -> Accepted:
        """Return the accepted job; accepts it where that was not done yet.

        Raises ``Refused`` with what is wrong with the job, ``Lost`` where what was accepted before
        is gone, and ``Stale`` where it may have been accepted since a job that is not ``fresh``.
        """
        uid = body["metadata"]["uid"]
        known = self._known.get(uid)
        digest = status.resolved.digest if status.resolved else None
        if known is not None and digest in (None, known.digest):
            return known
        if digest is None:
            found = await self._write(await self._resolved(body), fresh=fresh)
        else:
            there = await self._read(body)
            found = there or await self._restored(body, digest, present=False)
            if found.digest != digest:
                found = await self._restored(body, digest, present=True)
        self._known.put(uid, found, len(canonical(found.job.to_json())))
        return found

    async def placement(self, accepted: Accepted) -> Placement:
        """Return where pods run, as the profile says now.

        Raises ``ProfileMissing``: what a platform team has withdrawn starts nothing any more.
        """
        profile, reference = await self.profile(accepted), accepted.job.spec.profile_ref
        if profile is None and reference is not None:
            raise ProfileMissing(reference.name)
        platform = profile.spec.platform if profile else Platform()
        return Placement.of(platform, accepted.queue_labels)

    async def profile(self, accepted: Accepted) -> Profile | None:
        """Return the job's profile as it is now; None where there is none that can be used."""
        reference = accepted.job.spec.profile_ref
        return None if reference is None else await self._profiles.named(reference.name)

    async def live(self, body: Object, accepted: Accepted) -> tuple[Live, tuple[Problem, ...]]:
        """Return the fields that may change, as they are now, and why some do not count.

        A value that goes beyond the profile's limits does not count: the accepted one stays.
        """
        generation = int(body["metadata"].get("generation") or 0)
        job = accepted.job
        now, problems = changed_spec(job, body.get("spec") or {})
        if now.active_deadline_seconds != job.spec.active_deadline_seconds and now.profile_ref:
            profile = await self._profiles.named(now.profile_ref.name)
            now, beyond = within_limits(job, now, profile)
            problems += beyond
        return Live.of(now, generation), problems

    async def _resolved(self, body: Object) -> tuple[ResolvedJob, dict[str, str]]:
        """Resolve a job as it stands."""
        labels_ = await self._labels_of(body["metadata"]["namespace"])
        job = resolve(body, await self._profiles.all(), labels_)
        if not job.trainer_image:
            job = job.model_copy(update={"trainer_image": self._image})
        if not job.trainer_image:
            raise Refused(
                Problem(
                    code="trainer-image-missing",
                    message="neither the profile nor the operator names an image of the trainer",
                    fix="who runs the cluster has to set platform.images.trainer in the profile",
                )
            )
        own = body["metadata"].get("labels") or {}
        return job, {name: own[name] for name in _QUEUE_LABELS if name in own}

    async def _labels_of(self, namespace: str) -> Mapping[str, str]:
        """Return the labels of a namespace, by which profiles admit it."""
        now = time.monotonic()
        at, found = self._namespaces.get(namespace, (float("-inf"), {}))
        if now - at > _FRESH_NAMESPACE:
            body = await self._kube.find(NAMESPACES, None, namespace)
            found = ((body or {}).get("metadata") or {}).get("labels") or {}
            old = [name for name, (at, _) in self._namespaces.items() if now - at > FRESH]
            for name in old:
                del self._namespaces[name]
            self._namespaces[namespace] = (now, found)
        return found

    async def _write(
        self, made: tuple[ResolvedJob, dict[str, str]], *, fresh: bool = True
    ) -> Accepted:
        """Write it down. What lies there already counts only if it is the same."""
        job, queue_labels = made
        parts = {"job.json": job.to_json(), "queue.json": queue_labels}
        body = _config_map(job, _name(job.name, job.uid), parts)
        try:
            return _parsed(await self._kube.create(body))
        except Conflict:
            if not fresh:
                raise Stale from None
            found = _parsed(await create_exactly(self._kube, body, job.uid))
            return replace(found, was_there=True)

    async def _read(self, body: Object) -> Accepted | None:
        metadata_ = body["metadata"]
        name = _name(metadata_["name"], metadata_["uid"])
        found = await self._kube.find(CONFIG_MAPS, metadata_["namespace"], name)
        if found is None:
            return None
        if not owned_by(found, metadata_["uid"]):
            return None
        try:
            return _parsed(found)
        except (Lost, ValidationError):
            return None

    async def _restored(self, body: Object, digest: str, *, present: bool) -> Accepted:
        """Resolve the job again; what comes out counts only if it is what was accepted."""
        name = _name(body["metadata"]["name"], body["metadata"]["uid"])
        if present:
            raise Lost(f"ConfigMap {name} is not the one that was accepted: remove it")
        try:
            made = await self._resolved(body)
        except Refused as refused:
            raise Lost(f"ConfigMap {name} is gone, and now: {refused}") from refused
        if _digest(made[0].to_json(), made[1]) != digest:
            raise Lost(
                f"ConfigMap {name} is gone, and resolving the job again gives something else"
                " (the profile or the operator has changed): bring it back from a copy"
            )
        return await self._write(made)


def _name(job: str, uid: str) -> str:
    return f"{workspace_folder(job, uid)}-resolved"


def _config_map(job: ResolvedJob, name: str, parts: Mapping[str, Any]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(job, name, labels(job)),
        "immutable": True,
        "data": {file: canonical(data).decode() for file, data in parts.items()},
    }


def _parsed(body: Object) -> Accepted:
    """Read a resolved job back. The digest is of what stands there, not of what we would write.

    A newer operator may know fields that were not there: the job stays the one that it was.
    """
    data = body.get("data") or {}
    try:
        raw, queue = json.loads(data["job.json"]), json.loads(data["queue.json"])
        return Accepted(
            job=ResolvedJob.model_validate(raw),
            config_map=body["metadata"]["name"],
            digest=_digest(raw, queue),
            queue_labels={str(k): str(v) for k, v in queue.items()},
        )
    except (KeyError, ValueError, AttributeError) as error:
        raise Lost(f"ConfigMap {body['metadata']['name']} cannot be read: {error}") from error


def _digest(job: Any, queue: Any) -> str:
    return digest_of({"job": job, "queue": queue})
