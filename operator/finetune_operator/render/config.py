"""ConfigMaps that never change: the configuration of each child."""

from __future__ import annotations

from finetune_api import GROUP
from finetune_api.document import canonical
from finetune_api.names import CONFIG_PATH
from finetune_api.resolved import Attempt, Choices, ResolvedJob, Stage, StageConfig
from finetune_operator.render import Object, owner
from finetune_operator.render.claims import mounts

KEY = CONFIG_PATH.rsplit("/", 1)[1]
ANNOTATION_DIGEST = f"{GROUP}/digest"


def config_name(child: str) -> str:
    """Return the name of the ConfigMap that a child's pods read."""
    return f"{child}-config"


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
    labels = owner.labels(job, config.stage, number)
    metadata = owner.metadata(job, config_name(child), labels)
    metadata["annotations"] = {ANNOTATION_DIGEST: config.digest}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": {KEY: canonical(config.to_json()).decode()},
    }
