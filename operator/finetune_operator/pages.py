"""What a list is: objects of one kind at one point in time, that come in pages. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.answers import Object, held
from finetune_operator.resources import Resource

NOTE = 1024
"""Characters of an annotation; a longer one is nothing that is read of a list."""


@dataclass(frozen=True)
class Listing:
    """All objects of a kind as they were at one version of the cluster's store."""

    items: list[Object]
    version: int | None
    """None where the API server's versions are no numbers: they cannot be compared."""


@dataclass(frozen=True)
class Page(Listing):
    """Some of a list's objects."""

    begins: bool
    """Whether the list begins here, anew where others came before."""


def _short(item: Object) -> Object:
    """Return an object without annotations that are long: users decide how long."""
    metadata = item.get("metadata") or {}
    notes = metadata.get("annotations")
    if not notes:
        return item
    short = {name: it for name, it in notes.items() if len(it) <= NOTE}
    return {**item, "metadata": {**metadata, "annotations": short}}


def page_of(resource: Resource, answer: Object, *, begins: bool) -> tuple[Page, str]:
    """Return the objects of an answer, and what to ask with for the next; empty: it is the last."""
    metadata = answer.get("metadata") or {}
    version = str(metadata.get("resourceVersion"))
    # The items of a list carry neither kind nor version.
    kind = {"apiVersion": resource.api_version, "kind": resource.kind}
    items = [{**kind, **_short(item)} for item in held(answer, "items")]
    number = int(version) if version.isdecimal() else None
    return Page(items, number, begins), str(metadata.get("continue") or "")
