"""ConfigMaps that never change: the resolved job, and the configuration of each child."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from finetune_api import GROUP
from finetune_api.document import canonical
from finetune_api.names import CONFIG_PATH
from finetune_api.resolved import Attempt, Choices, ResolvedJob, Stage, StageConfig
from finetune_operator.render import Object, owner
from finetune_operator.render.claims import mounts

KEY = CONFIG_PATH.rsplit("/", 1)[1]
ANNOTATION_DIGEST = f"{GROUP}/digest"

Written = TypeVar("Written", ResolvedJob, StageConfig)


def resolved_name(job: str) -> str:
    """Return the name of the ConfigMap that holds the resolved job."""
    return f"{job}-resolved"


def config_name(child: str) -> str:
    """Return the name of the ConfigMap that a child's pods read."""
    return f"{child}-config"


def resolved(job: ResolvedJob) -> Object:
    """Return the ConfigMap of the resolved job, written once when the job is accepted."""
    return _config_map(job, resolved_name(job.name), job, owner.labels(job))


def stage_config(
    job: ResolvedJob,
    stage: Stage,
    choices: Choices | None = None,
    attempt: Attempt | None = None,
) -> StageConfig:
    """Return what the processes of a child are told; its digest goes into their arguments."""
    return StageConfig(
        stage=stage,
        job=job,
        mounts=mounts(job.spec, stage),
        choices=choices if stage != "prepare" else None,
        attempt=attempt,
    )


def stage(config: StageConfig, child: str, number: int) -> Object:
    """Return the ConfigMap of a child's configuration."""
    job = config.job
    return _config_map(job, config_name(child), config, owner.labels(job, config.stage, number))


def read_resolved(config_map: Mapping[str, Any], digest: str) -> ResolvedJob | None:
    """Return the job of a ConfigMap; None unless it is the one that was written.

    A tenant may delete the ConfigMap and make another of the same name: the digest in status
    tells.
    """
    return _read(ResolvedJob, config_map, digest)


def read_stage(config_map: Mapping[str, Any], digest: str | None = None) -> StageConfig | None:
    """Return the configuration of a child; without a digest, the one that it says of itself."""
    return _read(StageConfig, config_map, digest)


def _config_map(
    job: ResolvedJob, name: str, document: ResolvedJob | StageConfig, labels: Object
) -> Object:
    metadata = owner.metadata(job, name, labels)
    metadata["annotations"] = {ANNOTATION_DIGEST: document.digest}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": {KEY: canonical(document.to_json()).decode()},
    }


def _read(
    model: type[Written], config_map: Mapping[str, Any], digest: str | None
) -> Written | None:
    annotations = (config_map.get("metadata") or {}).get("annotations") or {}
    wanted = digest or annotations.get(ANNOTATION_DIGEST)
    try:
        found = model.model_validate(json.loads((config_map.get("data") or {})[KEY]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return found if found.digest == wanted else None
