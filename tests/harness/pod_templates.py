"""The pod template of one stage of a short job."""

from __future__ import annotations

import copy
from typing import Any

from finetune_api.profile import Platform
from finetune_api.resolved import Stage
from finetune_operator.backend import BACKENDS, attempt, prepare_or_publish
from finetune_operator.render.config import stage_config
from finetune_operator.render.placement import Placement
from harness.rendered import CHOICES, attempt_config, faults, job_of

STAGES: tuple[Stage, ...] = ("prepare", "train", "publish")
SPEC: dict[str, Any] = {
    "model": {"uri": "pvc://models/base"},
    "dataset": {"train": [{"uri": "pvc://datasets/train.jsonl"}]},
    "method": {"lora": {}},
    "training": {"learningRate": 2e-4, "precision": "fp32", "gradientCheckpointing": False},
    "parallelism": {"ddp": {}},
    "resources": {"processesPerNode": 1},
}


def spec(**sections: Any) -> dict[str, Any]:
    """Return ``SPEC`` with fields of sections replaced."""
    out = copy.deepcopy(SPEC)
    for name, value in sections.items():
        out[name] = {**out.get(name, {}), **value}
    return out


def pod_of(
    stage: Stage,
    given: dict[str, Any] | None = None,
    platform: dict[str, Any] | None = None,
    backend: str = "PyTorchJob",
) -> dict[str, Any]:
    """Return the pod template of one stage."""
    job = job_of(given or SPEC)
    place = Placement(Platform.model_validate(platform or {}))
    if stage == "train":
        made = attempt(BACKENDS[backend], attempt_config(job), "support-bot-1", place)
    else:
        choices = CHOICES if stage == "publish" else None
        config = stage_config(job, stage, choices)
        made = prepare_or_publish(config, f"support-bot-{stage}", 1, place)
    assert faults(made) == []
    body = made[-1]["spec"]
    replicas = body.get("pytorchReplicaSpecs")
    found: dict[str, Any] = replicas["Worker"]["template"] if replicas else body["template"]
    return found


def variables(template: dict[str, Any]) -> dict[str, Any]:
    """Return the environment of a template's container by name."""
    env = template["spec"]["containers"][0]["env"]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in env}
