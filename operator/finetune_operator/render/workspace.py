"""The claim that is made for a job that names none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.job.lifecycle import WORKSPACE_SIZE
from finetune_api.names import LABEL_MANAGED_BY, LABEL_UID, MANAGED_BY, workspace_claim
from finetune_api.resolved import ResolvedJob
from finetune_operator.render import Object, owner


def workspace(job: ResolvedJob, *, size: str | None = None) -> Object | None:
    """Return the claim to make; None where the job names one that exists.

    It has no owner while ``retain`` is true, so that checkpoints outlive the job; it is found again
    by its labels. ``size`` is what the object says now: it may have grown. Several nodes write at
    the same time, so they need ReadWriteMany.
    """
    wanted = job.spec.workspace
    if wanted.claim_name is not None:
        return None
    several = job.spec.resources.nodes > 1
    spec: Object = {
        "accessModes": ["ReadWriteMany" if several else "ReadWriteOnce"],
        "resources": {"requests": {"storage": size or wanted.size or WORKSPACE_SIZE}},
    }
    if wanted.storage_class_name is not None:
        spec["storageClassName"] = wanted.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": owner.metadata(
            job, workspace_claim(job.name), owner.labels(job), owned=not wanted.retain
        ),
        "spec": spec,
    }


def made_by_us(claim: Mapping[str, Any]) -> bool:
    """Tell whether a claim carries our label; one that does not is somebody else's."""
    labels = (claim.get("metadata") or {}).get("labels") or {}
    return bool(labels.get(LABEL_MANAGED_BY) == MANAGED_BY)


def made_for(claim: Mapping[str, Any]) -> str | None:
    """Return the uid of the job that a claim was made for."""
    labels = (claim.get("metadata") or {}).get("labels") or {}
    uid = labels.get(LABEL_UID)
    return uid if isinstance(uid, str) else None


def shared(claim: Mapping[str, Any]) -> bool:
    """Tell whether several nodes may write to a claim at the same time."""
    bound = (claim.get("status") or {}).get("accessModes")
    asked = (claim.get("spec") or {}).get("accessModes")
    return "ReadWriteMany" in (bound or asked or [])
