"""What is chosen when nobody says it: values that depend on the rest of the job, with reasons."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from finetune_api.resolved import Chosen
from finetune_operator.resolve.layers import Merged
from finetune_operator.resolve.paths import Path, look, path_text

ADAPTERS = frozenset({"lora", "houlsby", "prefixTuning", "promptTuning", "pTuning"})
ENGINES = frozenset({"deepspeed", "fsdp", "ddp"})
PROMPT_METHODS = frozenset({"prefixTuning", "promptTuning", "pTuning"})

LEARNING_RATE: dict[str, dict[str, float]] = {
    "full": {
        "sft": 1e-5,
        "pretrain": 1e-5,
        "dpo": 5e-7,
        "kto": 5e-7,
        "orpo": 5e-6,
        "reward": 1e-5,
        "supervised": 2e-5,
    },
    "lora": {
        "sft": 2e-4,
        "pretrain": 1e-4,
        "dpo": 5e-6,
        "kto": 5e-6,
        "orpo": 5e-5,
        "reward": 1e-4,
        "supervised": 2e-4,
    },
    "houlsby": {
        "sft": 1e-4,
        "pretrain": 1e-4,
        "dpo": 5e-6,
        "kto": 5e-6,
        "orpo": 5e-5,
        "reward": 1e-4,
        "supervised": 1e-4,
    },
    **{
        method: dict.fromkeys(
            ("sft", "pretrain", "dpo", "kto", "orpo", "reward", "supervised"), 1e-2
        )
        for method in sorted(PROMPT_METHODS)
    },
}
"""``training.learningRate`` by method and objective."""

FROM_SCRATCH = 3e-4
"""``training.learningRate`` of a model that starts from random weights."""


def fill(merged: Merged) -> tuple[Merged, tuple[Chosen, ...]]:
    """Return the spec with every value that the rest of the job decides, and why each is so.

    Works on data that was not validated: where method or device make no sense, some value is
    filled in, and validation refuses what made no sense.
    """
    chosen: list[Chosen] = []

    def choose(path: Path, value: Any, reason: str) -> None:
        nonlocal merged
        if look(merged.data, *path) is None and _open(merged.data, path):
            merged = merged.filled(path, value)
            chosen.append(Chosen(field=path_text(path), value=spelled(value), reason=reason))

    if merged.data.get("objective") is None:
        choose(("objective", "sft"), {}, "the usual objective")
    method = only(merged.data.get("method"), LEARNING_RATE)
    objective = only(merged.data.get("objective"), LEARNING_RATE["full"])

    choose(("training", "learningRate"), *_learning_rate(merged.data, method, objective))
    if look(merged.data, "resources", "accelerator", "device") == "cpu":
        choose(("training", "precision"), "fp32", "the ranks compute on the CPU")
        choose(("training", "gradientCheckpointing"), False, "the ranks compute on the CPU")
        choose(("resources", "processesPerNode"), 1, "one rank a node computes on the CPU")
    else:
        choose(("training", "precision"), "bf16", "the ranks compute on accelerators")
        choose(("training", "gradientCheckpointing"), True, "memory of accelerators is the limit")
        per_node = look(merged.data, "resources", "accelerator", "perNode")
        choose(
            ("resources", "processesPerNode"),
            max(1, per_node) if isinstance(per_node, int) else 1,
            "one rank an accelerator",
        )
    engines = merged.data.get("parallelism") or {}
    if isinstance(engines, dict) and not ENGINES & engines.keys():
        ranks = world_size(merged.data)
        if ranks == 1:
            choose(("parallelism", "ddp"), {}, "one rank has nothing to divide")
        elif method in ADAPTERS:
            reason = "an adapter's optimizer state is small, dividing it gains nothing"
            choose(("parallelism", "ddp"), {}, reason)
        elif look(merged.data, "training", "precision") == "pureBf16":
            reason = "DeepSpeed would keep fp32 weights beside those of pureBf16"
            choose(("parallelism", "ddp"), {}, reason)
        else:
            reason = f"optimizer state and gradients are divided over {ranks} ranks"
            choose(("parallelism", "deepspeed"), {"zeroStage": 2}, reason)
    return merged, tuple(chosen)


COMPARED: tuple[tuple[Path, Any, Path | None], ...] = (
    (("resources", "accelerator", "device"), "cuda", None),
    (("resources", "accelerator", "perNode"), 1, None),
    (("dataset", "invalidRows"), "Fail", ("dataset", "maxInvalidFraction")),
)
"""Defaults of the object with which rules compare what was written. With a third path: only where the
user wrote that; of a profile it is a limit for those jobs that need one."""


def compared(merged: Merged) -> Any:
    """Return merged data as rules see it: a default that they compare with is as good as written.

    The API server's copy of a rule goes by what is written alone, because a profile may fill in
    the rest.
    """
    seen = merged
    for path, value, written in COMPARED:
        if written is not None and merged.origin(written) != "user":
            continue
        if isinstance(look(seen.data, path[0]), dict) and look(seen.data, *path) is None:
            seen = seen.filled(path, value) if _open(seen.data, path) else seen
    return seen.data


def _open(data: Any, path: Path) -> bool:
    """Tell whether a value can be put at a path: what is around it is a section or absent."""
    return all(
        around is None or isinstance(around, dict)
        for around in (look(data, *path[:end]) for end in range(1, len(path)))
    )


def _learning_rate(data: Any, method: str | None, objective: str | None) -> tuple[float, str]:
    """Return the learning rate of a job and why it is that."""
    if look(data, "model", "initialization") == "FromConfig":
        return FROM_SCRATCH, "the weights start from random values"
    if method is None or objective is None:
        return LEARNING_RATE["lora"]["sft"], "the usual value"
    return LEARNING_RATE[method][objective], f"the usual value for {objective} with {method}"


def only(section: Any, known: Any) -> str | None:
    """Return the one choice of a one-of section; None where there is none or more than one."""
    names = [name for name in section if name in known] if isinstance(section, dict) else []
    return names[0] if len(names) == 1 else None


def world_size(data: Any) -> int:
    """Return the number of ranks of raw data, 1 where it makes no sense."""
    nodes = look(data, "resources", "nodes")
    processes = look(data, "resources", "processesPerNode")
    return (nodes if isinstance(nodes, int) else 1) * (
        processes if isinstance(processes, int) else 1
    )


def spelled(value: Any) -> str:
    """Return a value as it is written in a file, in few characters: ``2e-4``, ``true``, ``{}``."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {spelled(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(spelled(item) for item in value) + "]"
    return str(value)


def _number(value: float) -> str:
    """Return a float without needless zeros: 0.0002 is ``2e-4``, 0.05 is ``0.05``, 3.0 is ``3``."""
    if not math.isfinite(value):
        return repr(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if 1e-2 <= abs(value) < 1e6:
        return repr(value)
    return f"{Decimal(repr(value)).normalize():e}"
