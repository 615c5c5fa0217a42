"""Creating what a job owns: once, and never mistaking somebody else's object for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from finetune_operator.kube import Conflict, Object, Resource, is_ending, resource_of


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

    def __init__(self, body: Mapping[str, Any]) -> None:
        """Say what is in the way, and what to do."""
        what = f"{body['kind']} {body['metadata']['name']}"
        self.ending = is_ending(body)
        self.message = (
            f"{what} is being removed; its name is needed"
            if self.ending
            else f"{what} exists and is not this job's; remove it, or give the job another name"
        )
        super().__init__(self.message)


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
                raise NameTaken({**found, "kind": body["kind"]}) from None
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
