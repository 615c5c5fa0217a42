"""The memory of a node beside its accelerators: what the ranks of a pod hold while they load.

A rank loads the whole base model before the engine takes it to its device; only ZeRO-3 divides it
while it is read. Weights that are used in the type that they are stored in stay in their files,
mapped, and take nothing that cannot be taken back.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from finetune_api.problem import Problem
from finetune_api.quantity import format_bytes, parse_bytes
from finetune_api.resolved import StageConfig
from finetune_trainer.memory import verdict
from finetune_trainer.memory.estimate import CPU_PROCESS, GIB
from finetune_trainer.model import load_dtype, model_folder
from finetune_trainer.weights import weight_files

TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What safetensors and torch call the types that weights are converted from."""


def problem(config: StageConfig) -> Problem | None:
    """Return what is wrong with the memory that a job on accelerators asks for its pods.

    An error where it is less than what is certainly needed, a warning where hardly anything is left
    for what is not counted. None where it is enough, or where the job names none.
    """
    resources = config.job.spec.resources
    if resources.accelerator.device != "cuda" or not resources.memory:
        return None
    room, need = parse_bytes(resources.memory), needed(config)
    comfortable = room * (1 - verdict.MARGIN)
    if need <= comfortable:
        return None
    enough = math.ceil(need / (1 - verdict.MARGIN) / GIB)
    ranks, each = resources.processes_per_node, format_bytes(loaded(config))
    return Problem(
        code="node-memory-too-small",
        message=f"loading the model needs {format_bytes(need)} of a node's memory ({ranks} x {each} "
        f"of weights, and the libraries), and resources.memory is {format_bytes(room)}",
        fix=f"set resources.memory: {enough}Gi{_divided(config, comfortable)}",
        field="spec.resources.memory",
        severity="error" if need > room else "warning",
    )


def needed(config: StageConfig) -> int:
    """Return the bytes that the ranks of one node need at least at once, their libraries once.

    Ranks are forked from one process that has the libraries. What a driver and buffers for
    transfers take is not counted.
    """
    return config.job.spec.resources.processes_per_node * loaded(config) + CPU_PROCESS


def loaded(config: StageConfig) -> int:
    """Return the bytes that one rank holds when it has loaded the base model.

    From the heads of the files alone. Measured with transformers 5: a weight in another type than
    its file's takes its size in that type, any other weight takes nothing.
    """
    deepspeed = config.job.spec.parallelism.deepspeed
    if deepspeed is not None and deepspeed.zero_stage == 3:
        return 0
    wanted = load_dtype(config)
    kept = str(wanted).removeprefix("torch.")
    total = 0
    for path in weight_files(model_folder(config)):
        for entry in _head(path).values():
            if TYPES.get(entry.get("dtype", ""), kept) != kept:
                total += math.prod(entry["shape"]) * wanted.itemsize
    return total


def _head(path: Path) -> dict[str, Any]:
    """Return what a file of safetensors says of its tensors, without a map of the whole file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        head: dict[str, Any] = json.loads(file.read(length))
    head.pop("__metadata__", None)
    return head


def _divided(config: StageConfig, room: float) -> str:
    """Return the end of the fix that names ZeRO-3, where that is possible and enough."""
    spec = config.job.spec
    current = spec.parallelism.deepspeed
    if spec.resources.world_size == 1 or spec.training.precision == "pureBf16":
        return ""
    settings = {**(current.to_json() if current else {}), "zeroStage": 3}
    changed = verdict.with_changes(config, {"parallelism": {"deepspeed": settings}})
    if loaded(changed) == loaded(config) or needed(changed) > room:
        return ""
    return ", or parallelism: {deepspeed: {zeroStage: 3}}, which divides the weights as it loads"
