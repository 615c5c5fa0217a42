"""Any spec that renderers may be given, for hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from finetune_api.job import JobSpec
from finetune_api.structural import structural
from harness.spec_strategy import from_schema

REQUIRED: dict[str, Any] = {
    "model": {"uri": "pvc://models/base"},
    "dataset": {"train": [{"uri": "pvc://datasets/train.jsonl"}]},
    "method": {"lora": {}},
    "training": {"learningRate": 2e-4, "precision": "bf16", "gradientCheckpointing": True},
    "parallelism": {"ddp": {}},
    "resources": {"processesPerNode": 1},
}
"""The shortest complete spec."""
SECTIONS = ("model", "dataset", "resources", "workspace", "checkpoint", "output", "reporting")
"""Of a spec, those that a renderer reads."""
_SCHEMA = structural(JobSpec)["properties"]


def _completed(drawn: dict[str, Any]) -> dict[str, Any]:
    names = {**REQUIRED, **drawn}
    return {name: {**REQUIRED.get(name, {}), **drawn.get(name, {})} for name in names}


SPECS = st.fixed_dictionaries(
    {}, optional={name: from_schema(_SCHEMA[name]) for name in SECTIONS}
).map(_completed)
