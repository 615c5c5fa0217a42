"""Preparation and publishing: one pod, one try, never an accelerator."""

from __future__ import annotations

from finetune_api.resolved import StageConfig
from finetune_operator.render import Object, owner
from finetune_operator.render.placement import Placement
from finetune_operator.render.pod import Run, template


def cpu_job(config: StageConfig, child: str, number: int, placement: Placement) -> Object:
    """Return the ``batch/v1`` Job of a preparation or publishing, its ``number``-th try.

    Tries are the operator's to count, so the Job has none of its own. It carries no failure
    policy: with one, a pod that is deleted would only count when it is gone.
    """
    run = Run(config=config, number=number, child=child)
    queue = placement.preparation_queue_labels()
    return single_shot(run, placement, queue, pods=1)


def single_shot(run: Run, placement: Placement, queue: dict[str, str], *, pods: int) -> Object:
    """Return a Job whose first failed pod ends it and all of its other pods."""
    job = run.config.job
    labels = {**owner.labels(job, run.config.stage, run.number), **queue}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": owner.metadata(job, run.child, labels),
        "spec": {
            "suspend": bool(queue),
            "parallelism": pods,
            "completions": pods,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            # A pod that is told to go counts as failed at once: all are told at the same time,
            # and none is made again.
            "podReplacementPolicy": "TerminatingOrFailed",
            "template": template(run, placement),
        },
    }
