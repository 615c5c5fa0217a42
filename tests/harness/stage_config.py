"""Complete configurations for the trainer's processes, without an operator in between."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from finetune_api.job import JobSpec
from finetune_api.resolved import Attempt, Choices, Mounts, ResolvedJob, Stage, StageConfig

UID = "00000000-0000-4000-8000-000000000001"

SPEC: dict[str, Any] = {
    "model": {"uri": "pvc://models/tiny"},
    "dataset": {"train": [{"uri": "pvc://datasets/train.jsonl"}], "maxLength": 128},
    "method": {"lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
    "training": {
        "learningRate": 1e-3,
        "precision": "fp32",
        "gradientCheckpointing": False,
        "globalBatchSize": 4,
        "microBatchSize": 1,
        "loggingSteps": 1,
    },
    "parallelism": {"ddp": {}},
    "resources": {
        "accelerator": {"device": "cpu", "perNode": 0},
        "processesPerNode": 1,
    },
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``over`` on top; None removes a key."""
    out = copy.deepcopy(base)
    for key, value in over.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merged(out[key], value)
        else:
            out[key] = copy.deepcopy(value)
    return out


def make_config(
    root: Path,
    stage: Stage,
    spec: dict[str, Any] | None = None,
    *,
    choices: Choices | None = None,
    attempt: Attempt | None = None,
    name: str = "tiny",
) -> StageConfig:
    """Return a stage's configuration whose folders lie under ``root``.

    Claims are ``root/volumes/<claim>``, the job's folder is ``root/workspace``. ``spec`` is laid
    over ``SPEC``; to change the method, remove the old one: ``{"method": {"lora": None, "full": {}}}``.
    """
    volumes = root / "volumes"
    for claim in ("models", "datasets"):
        (volumes / claim).mkdir(parents=True, exist_ok=True)
    workspace = root / "workspace"
    workspace.mkdir(parents=True, exist_ok=True)
    job = ResolvedJob(
        name=name,
        namespace="default",
        uid=UID,
        spec=JobSpec.model_validate(merged(SPEC, spec or {})),
    )
    return StageConfig(
        stage=stage,
        job=job,
        mounts=Mounts(
            workspace=str(workspace),
            volumes={folder.name: str(folder) for folder in sorted(volumes.iterdir())},
        ),
        choices=choices,
        attempt=attempt,
    )


def one_step(model_path: str) -> Choices:
    """Return what a preparation chose for one sequence and one step on a model that is there."""
    digest = "sha256:" + "0" * 64
    return Choices(
        fingerprint=digest,
        model_path=model_path,
        model_digest=digest,
        tokenizer_digest=digest,
        train_sequences=1,
        packing=False,
        global_batch_size=1,
        micro_batch_size=1,
        micro_batch_chosen=True,
        steps_per_epoch=1,
        total_steps=1,
    )


def write_config(config: StageConfig, path: Path) -> Path:
    """Write the configuration as the trainer reads it; returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config.to_json(), indent=1), encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Write one JSON value a line; a string is written as it stands. Returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path
