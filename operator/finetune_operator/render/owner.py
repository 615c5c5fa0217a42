"""Labels and owner of everything that is made for a job."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_api import API_VERSION
from finetune_api.job import KIND
from finetune_api.names import (
    LABEL_ATTEMPT,
    LABEL_JOB,
    LABEL_MANAGED_BY,
    LABEL_STAGE,
    LABEL_UID,
    MANAGED_BY,
)
from finetune_api.resolved import ResolvedJob, Stage
from finetune_operator.render import Object


def owner_reference(job: ResolvedJob) -> Object:
    """Return the reference to the job, so that what it owns goes with it.

    ``blockOwnerDeletion`` is false: setting it needs rights on the job's finalizers where the API
    server checks that.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def labels(job: ResolvedJob, stage: Stage | None = None, number: int | None = None) -> Object:
    """Return the labels by which the job, the stage and the try (from 1) are found again."""
    own = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_JOB: job.name, LABEL_UID: job.uid}
    if stage is not None:
        own[LABEL_STAGE] = stage
    if number is not None:
        own[LABEL_ATTEMPT] = str(number)
    return own


def metadata(job: ResolvedJob, name: str, own: Mapping[str, str], *, owned: bool = True) -> Object:
    """Return the metadata of an object in the job's namespace."""
    found: Object = {"name": name, "namespace": job.namespace, "labels": dict(own)}
    if owned:
        found["ownerReferences"] = [owner_reference(job)]
    return found
