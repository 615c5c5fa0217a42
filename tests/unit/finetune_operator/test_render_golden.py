"""One job of each backend, whole: ``UPDATE_GOLDEN=1 pytest`` writes the files anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from finetune_api.profile import Platform
from finetune_operator.backend import BACKENDS, attempt, prepare_or_publish
from finetune_operator.render.config import stage_config
from finetune_operator.render.placement import Placement
from finetune_operator.render.workspace import workspace
from harness.rendered import CHOICES, attempt_config, faults, job_of

GOLDEN = Path(__file__).parent / "golden"
SPEC: dict[str, Any] = {
    "model": {
        "uri": "hf://Qwen/Qwen2.5-7B-Instruct",
        "tokenSecretRef": {"name": "hf", "key": "token"},
        "tokenizer": {"uri": "pvc://models/tokenizer"},
    },
    "dataset": {
        "train": [{"uri": "pvc://datasets/support/train.jsonl"}],
        "validation": {"sources": [{"uri": "pvc://held-out/validation.jsonl"}]},
    },
    "method": {"lora": {}},
    "training": {"learningRate": 2e-4, "precision": "bf16", "gradientCheckpointing": True},
    "parallelism": {"deepspeed": {"zeroStage": 2}},
    "resources": {
        "nodes": 2,
        "accelerator": {"resource": "nvidia.com/gpu", "perNode": 8, "memory": "80Gi"},
        "processesPerNode": 8,
        "cpu": "32",
        "memory": "256Gi",
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "batch",
        "preparation": {"cpu": "8", "memory": "64Gi"},
        "publishing": {"cpu": "4", "memory": "32Gi"},
    },
    "output": {"uri": "pvc://models/support-bot"},
}
PLATFORM = Platform.model_validate(
    {
        "serviceAccountName": "finetune",
        "imagePullSecrets": ["registry"],
        "podSecurity": {"runAsUser": 5000, "fsGroup": 6000, "supplementalGroups": [7000]},
        "environment": [
            {"name": "NCCL_IB_HCA", "value": "mlx5"},
            {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"},
        ],
        "extraResources": {"rdma/hca": "1"},
        "podAnnotations": {"karpenter.sh/do-not-disrupt": "false"},
        "podLabels": {"cost-centre": "ml"},
        "zones": ["eu-1a"],
        "runtimeClassName": "nvidia",
        "schedulerName": "volcano",
    }
)
QUEUED = Placement(PLATFORM, "gpus", "high")
JOB = job_of(SPEC)
CASES: dict[str, Any] = {
    "prepare": prepare_or_publish(
        stage_config(JOB, "prepare"), "support-bot-prepare", 1, Placement(PLATFORM)
    ),
    "publish": prepare_or_publish(
        stage_config(JOB, "publish", CHOICES), "support-bot-publish", 1, Placement(PLATFORM)
    ),
    "pytorch-job": attempt(
        BACKENDS["PyTorchJob"], attempt_config(JOB, 2, resumes=True), "support-bot-2", QUEUED
    ),
    "indexed-job": attempt(
        BACKENDS["Job"], attempt_config(JOB, 1), "support-bot-1", Placement(PLATFORM)
    ),
    "workspace": (workspace(JOB),),
}


@pytest.mark.parametrize("name", CASES)
def test_the_objects_are_the_ones_on_file(name: str) -> None:
    text = json.dumps(CASES[name], indent=1, sort_keys=True) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    assert faults(CASES[name]) == []
