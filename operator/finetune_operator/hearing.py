"""Whether the watches can hear anything: a list that is refused is repeated by the library for ever."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_operator.kube import (
    BATCH_JOBS,
    CLAIMS,
    FINETUNE_JOBS,
    PODS,
    PROFILES,
    Forbidden,
    Kube,
    NotFound,
    Resource,
)

WATCHED = (FINETUNE_JOBS, PODS, BATCH_JOBS, CLAIMS)
"""In each namespace; profiles are the cluster's."""
MISSING = (FINETUNE_JOBS, PROFILES, BATCH_JOBS)
"""Kinds of groups that may be served later than the process starts."""
NOTHING = "metadata.name=none"
"""Asks for no object: whether a list is refused does not depend on what would be in it."""


async def deaf(kube: Kube, namespaces: Sequence[str]) -> str:
    """Return what is to be watched and may not be listed, and why; empty when there is nothing.

    A namespace whose jobs may not be listed is served no more, and not asked about. Raises
    ``KubeError`` where there was no answer.
    """
    for namespace in namespaces or (None,):
        for resource in WATCHED:
            text = await _refusal(kube, resource, namespace)
            if text and resource is FINETUNE_JOBS and namespace is not None:
                break
            if text:
                return text
    return await _refusal(kube, PROFILES, None)


async def unserved(kube: Kube) -> tuple[str, ...]:
    """Return what the API server does not serve yet; the library looks for it once, at its start."""
    return tuple([one.plural for one in MISSING if not await kube.serves(one, fresh=0.0)])


async def _refusal(kube: Kube, resource: Resource, namespace: str | None) -> str:
    try:
        # From the API server's memory, which holds whatever is watched.
        await kube.listed(resource, namespace, fields=NOTHING, since=0)
    except (Forbidden, NotFound) as error:
        where = f" of {namespace}" if namespace and resource.namespaced else ""
        return f"{resource.plural}{where} cannot be watched: {error}"
    return ""
