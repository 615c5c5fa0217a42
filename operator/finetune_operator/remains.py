"""Children that no list holds: what their pods tell of them, and whose they are not. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from finetune_api.resolved import Stage
from finetune_api.status import JobStatus
from finetune_operator.backend import BACKENDS, remains
from finetune_operator.kube import BATCH_JOBS, PYTORCH_JOBS, Object, Resource, owner_of
from finetune_operator.observed import ChildState

MOST_ASKED = 16
"""Controllers of pods that are asked for by name in one look."""
_KINDS: Mapping[str, Resource] = {one.kind: one for one in (BATCH_JOBS, PYTORCH_JOBS)}


def is_child_name(job: str, name: Any) -> bool:
    """Tell whether a job of ours may have a child of this name."""
    number = "[1-9][0-9]{0,8}"
    pattern = rf"{re.escape(job)}-({number}|(prepare|publish)(-{number})?)"
    return isinstance(name, str) and re.fullmatch(pattern, name) is not None


def unlisted(
    job: str, pods: Sequence[Object], there: Collection[str]
) -> list[tuple[Resource, str, str]]:
    """Return kind, name and uid of the controllers of pods that are not among what is there.

    Pods carry the labels of the template that they were made from, and anybody may make others from
    it: only what has the name of a child of this job can be one.
    """
    owners = {
        (str(owner["kind"]), str(owner["name"]), str(owner["uid"]))
        for owner in map(owner_of, pods)
        if owner.get("uid")
        and owner["uid"] not in there
        and owner.get("kind") in BACKENDS
        and is_child_name(job, owner.get("name"))
    }
    return [(_KINDS[kind], name, uid) for kind, name, uid in sorted(owners)]


def gone_children(
    job: str,
    there: Collection[str],
    pods: Sequence[Object],
    gone: Sequence[Object],
    status: JobStatus,
    nodes: int,
) -> list[ChildState]:
    """Return children whose own object is gone: pods of theirs exist, or how they ended is known.

    The latter counts for the ledger's child alone: its object may go before its end was looked at.
    """
    child = status.child.uid if status.child is not None else ""
    known = [pod for pod in gone if child and owner_of(pod).get("uid") == child]
    owners = {uid: name for _, name, uid in unlisted(job, (*pods, *known), there)}
    found = []
    for uid, name in sorted(owners.items()):
        processes = nodes if uid == child and _stage(status) == "train" else 1
        found.append(remains(name, uid, processes, pods, gone))
    return found


def _stage(status: JobStatus) -> Stage:
    if not status.prepared:
        return "prepare"
    return "publish" if status.trained else "train"
