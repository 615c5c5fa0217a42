"""Values of LoRA that do not go together."""

from __future__ import annotations

from finetune_api.condition import All, Either, Eq, Greater, Has, Not
from finetune_api.rule import Rule

ROWS: tuple[Rule, ...] = (
    Rule(
        code="layers-pattern-needs-layers",
        field="method.lora.layersPattern",
        when=All(Has("method.lora.layersPattern"), Not(Has("method.lora.layersToTransform"))),
        message="layersPattern says where layersToTransform counts; it does nothing alone",
        fix="set layersToTransform, or leave layersPattern out",
        bad={"method": {"lora": {"layersPattern": ["layers"]}}},
        good={"method": {"lora": {"layersPattern": ["layers"], "layersToTransform": [0, 1]}}},
    ),
    Rule(
        code="lora-bias-with-dora",
        field="method.lora.loraBias",
        when=All(Eq("method.lora.loraBias", True), Eq("method.lora.useDora", True)),
        message="loraBias cannot be combined with useDora",
        fix="leave one of them out",
        bad={"method": {"lora": {"loraBias": True, "useDora": True}}},
        good={"method": {"lora": {"useDora": True}}},
    ),
    Rule(
        code="lora-bias-with-initialisation",
        field="method.lora.loraBias",
        when=All(
            Eq("method.lora.loraBias", True),
            Has("method.lora.initLoraWeights"),
            Not(Eq("method.lora.initLoraWeights", "default")),
        ),
        message="loraBias works with the default initialisation only",
        fix="leave loraBias or initLoraWeights out",
        bad={"method": {"lora": {"loraBias": True, "initLoraWeights": "gaussian"}}},
        good={"method": {"lora": {"loraBias": True, "initLoraWeights": "default"}}},
    ),
    Rule(
        code="target-parameters-plain",
        field="method.lora.targetParameters",
        when=All(
            Has("method.lora.targetParameters"),
            Either(
                Greater("method.lora.dropout", 0.0),
                Eq("method.lora.useDora", True),
                Eq("method.lora.loraBias", True),
                Eq("method.lora.fanInFanOut", True),
            ),
        ),
        message="targetParameters cannot be combined with dropout, useDora, loraBias or "
        "fanInFanOut",
        fix="leave these out, or name whole modules in targetModules",
        bad={"method": {"lora": {"targetParameters": ["experts.gate_up_proj"], "dropout": 0.1}}},
        good={"method": {"lora": {"targetParameters": ["experts.gate_up_proj"], "dropout": 0}}},
    ),
)
