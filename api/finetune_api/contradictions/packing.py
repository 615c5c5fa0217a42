"""Packed sequences."""

from __future__ import annotations

from finetune_api.condition import All, Either, Eq, In, any_of
from finetune_api.contradictions.objective import HEADED_TASKS, PREFERENCE_OBJECTIVES
from finetune_api.rule import Rule

PROMPT_METHODS = ("method.prefixTuning", "method.promptTuning", "method.pTuning")

ROWS: tuple[Rule, ...] = (
    Rule(
        code="packing-needs-language-model",
        field="dataset.packing",
        when=All(
            Eq("dataset.packing", True),
            Either(
                In("model.task", HEADED_TASKS),
                any_of((*PREFERENCE_OBJECTIVES, "objective.kto", "objective.supervised")),
            ),
        ),
        message="packing is for sft and pretrain of a CausalLM",
        fix="leave packing out",
        bad={"dataset.packing": True, "objective": {"dpo": {}}},
        good={"dataset.packing": True, "objective": {"sft": {}}},
    ),
    Rule(
        code="packing-with-prompt-method",
        field="dataset.packing",
        when=All(Eq("dataset.packing", True), any_of(PROMPT_METHODS)),
        message="prompt methods put their tokens before a sequence, not before each packed row",
        fix="leave packing out, or use method: {lora: {}}",
        bad={"dataset.packing": True, "method": {"promptTuning": {}}},
        good={"dataset.packing": True, "method": {"lora": {}}},
    ),
    Rule(
        code="packing-with-grouping",
        field="training.sampling",
        when=All(Eq("dataset.packing", True), Eq("training.sampling", "GroupByLength")),
        message="packed sequences all have one length; there is nothing to group",
        fix="use sampling: Random, or packing: false",
        bad={"dataset.packing": True, "training": {"sampling": "GroupByLength"}},
        good={"dataset.packing": True, "training": {"sampling": "Random"}},
    ),
)
