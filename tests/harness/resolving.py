"""A short job and a profile as objects, and what ``resolve`` makes of them or says against them."""

from __future__ import annotations

import copy
from typing import Any

from finetune_api.problem import Refused
from finetune_api.resolved import ResolvedJob
from finetune_operator.resolve import resolve

MINIMAL: dict[str, Any] = {
    "model": {"uri": "hf://Qwen/Qwen2.5-7B-Instruct"},
    "dataset": {"train": [{"uri": "pvc://datasets/support/train.jsonl"}]},
    "method": {"lora": {}},
}


def job(spec: dict[str, Any] | None = None, name: str = "bot", **metadata: Any) -> dict[str, Any]:
    """Return a job whose spec is ``MINIMAL`` with sections replaced."""
    whole = {**copy.deepcopy(MINIMAL), **(spec or {})}
    return {"metadata": {"name": name, **metadata}, "spec": whole}


def profile(
    spec: dict[str, Any], name: str = "shared", *, default: bool = True, created: str = ""
) -> dict[str, Any]:
    """Return a profile: the default one of the cluster unless ``default`` is false."""
    metadata: dict[str, Any] = {"name": name, "creationTimestamp": created}
    if default:
        metadata["annotations"] = {"finetune.dev/is-default-profile": "true"}
    return {"metadata": metadata, "spec": spec}


def refused(*args: Any, **kwargs: Any) -> list[tuple[str | None, str, str, str]]:
    """Return (field, code, message, fix) of every problem; what is resolved fails the test."""
    try:
        resolved = resolve(*args, **kwargs)
    except Refused as found:
        return [(p.field, p.code, p.message, p.fix) for p in found.problems]
    raise AssertionError(f"nothing was refused: {resolved}")


def chosen(resolved: ResolvedJob) -> dict[str, tuple[str, str]]:
    """Return value and reason of everything that was chosen, by field."""
    return {item.field: (item.value, item.reason) for item in resolved.chosen}
