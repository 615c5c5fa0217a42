"""What the processes of a child are told."""

from __future__ import annotations

from finetune_api.resolved import Attempt, Choices, ResolvedJob, Stage, StageConfig
from finetune_operator.render.claims import mounts


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
