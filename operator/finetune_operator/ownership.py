"""Creating what a job owns: once, and never mistaking somebody else's object for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from finetune_api.names import LABEL_MANAGED_BY, MANAGED_BY
from finetune_api.status import Child
from finetune_operator.kube import (
    FINETUNE_JOBS,
    Conflict,
    Object,
    Resource,
    is_ending,
    owner_of,
    resource_of,
    uid_of,
)


class Creator(Protocol):
    """The part of the client that is needed."""

    async def create(self, body: Object) -> Object:
        """Create an object."""
        ...

    async def delete(
        self,
        body: Mapping[str, Any],
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
    ) -> None:
        """Delete an object."""
        ...

    async def find(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """Read an object."""
        ...


class NameTaken(Exception):
    """An object of this name exists that is not the job's, or that is going."""

    def __init__(self, body: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Say what is in the way of what was wanted, and what to do."""
        what = f"{body['kind']} {body['metadata']['name']}"
        if is_ending(body):
            self.message = f"{what} is being removed; its name is needed"
        elif _job_names(body) & _job_names(wanted):
            self.message = f"{what} belongs to an earlier job of this name and goes with it"
        else:
            self.message = (
                f"{what} exists and is not this job's; remove it, or give the job another name"
            )
        super().__init__(self.message)


def _job_names(body: Mapping[str, Any]) -> set[Any]:
    """Return the names of the jobs that an object belongs to."""
    owners = (body.get("metadata") or {}).get("ownerReferences") or ()
    return {owner.get("name") for owner in owners if owner.get("kind") == FINETUNE_JOBS.kind}


def owned_by(body: Mapping[str, Any], uid: str) -> bool:
    """Tell whether an object belongs to the job of this uid."""
    owners = (body.get("metadata") or {}).get("ownerReferences") or ()
    return uid in {owner.get("uid") for owner in owners}


async def create_owned(kube: Creator, body: Object, uid: str) -> Object:
    """Create an object, or return the one that this job already has under this name.

    Raises ``NameTaken`` where the name belongs to somebody else, or to an object that is going.
    """
    for _ in range(3):
        try:
            return await kube.create(body)
        except Conflict:
            metadata = body["metadata"]
            found = await kube.find(resource_of(body), metadata.get("namespace"), metadata["name"])
            if found is None:
                continue
            if not owned_by(found, uid) or is_ending(found):
                raise NameTaken({**found, "kind": body["kind"]}, body) from None
            return found
    raise Conflict(409, f"{body['kind']} {body['metadata']['name']} comes and goes")


async def create_exactly(kube: Creator, body: Object, uid: str) -> Object:
    """Create an object that has data; one of other data, whoever wrote it, is replaced.

    For what nothing runs with yet: a child is created after what it is made of.
    """
    found = await create_owned(kube, body, uid)
    if found.get("data") != body.get("data"):
        await kube.delete(found)
        found = await create_owned(kube, body, uid)
    return found


def with_owner(pod: Object, children: Sequence[Object], current: Child | None) -> Object:
    """Return a pod whose child was deleted without it as if that child still owned it.

    Its process runs on, and nothing else may start beside it. Labels alone make no pod ours: its
    name has to be one that the controller of that child gave it, and that child has to be gone or
    going.
    """
    metadata = pod.get("metadata") or {}
    labels = metadata.get("labels") or {}
    found = [(labels[label], kind) for label, kind in CHILD_LABELS.items() if labels.get(label)]
    if owner_of(pod) or not found or labels.get(LABEL_MANAGED_BY) != MANAGED_BY:
        return pod
    name, kind = found[0]
    same = [child for child in children if child["metadata"]["name"] == name]
    if not str(metadata.get("name")).startswith(f"{name}-") or not all(map(is_ending, same)):
        return pod
    known = current.uid if current is not None and current.name == name else ""
    known = uid_of(same[0]) if same else known
    owner = {"kind": kind, "name": name, "uid": known or f"gone/{name}", "controller": True}
    return {**pod, "metadata": {**metadata, "ownerReferences": [owner]}}


CHILD_LABELS = {
    "batch.kubernetes.io/job-name": "Job",
    "training.kubeflow.org/job-name": "PyTorchJob",
}
"""Labels with which the controllers name a pod's child."""
