"""Sections that hold one choice: method, objective, engine."""

from __future__ import annotations

from finetune_api.condition import All, Count, Has
from finetune_api.rule import Rule

METHODS = tuple(
    f"method.{kind}"
    for kind in ("full", "lora", "houlsby", "prefixTuning", "promptTuning", "pTuning")
)
OBJECTIVES = tuple(
    f"objective.{kind}"
    for kind in ("sft", "pretrain", "dpo", "kto", "reward", "orpo", "supervised")
)
ENGINES = tuple(f"parallelism.{kind}" for kind in ("deepspeed", "fsdp", "ddp"))

ROWS: tuple[Rule, ...] = (
    Rule(
        code="method-exactly-one",
        field="method",
        when=Count(METHODS, "!=", 1),
        message="spec.method must hold exactly one of full, lora, houlsby, prefixTuning, "
        "promptTuning and pTuning",
        fix="write one of them, with {} behind it where it needs no values: method: {full: {}}",
        bad={"method": {"full": {}, "lora": {}}},
        good={"method": {"full": {}}},
    ),
    Rule(
        code="objective-exactly-one",
        field="objective",
        when=All(Has("objective"), Count(OBJECTIVES, "!=", 1)),
        message="spec.objective must hold exactly one of sft, pretrain, dpo, kto, reward, orpo "
        "and supervised",
        fix="write one of them, or leave objective out for sft",
        bad={"objective": {}},
        good={"objective": {"sft": {}}},
    ),
    Rule(
        code="engine-at-most-one",
        field="parallelism",
        when=Count(ENGINES, ">", 1),
        message="spec.parallelism must hold at most one of deepspeed, fsdp and ddp",
        fix="keep one of them",
        bad={"parallelism": {"deepspeed": {"zeroStage": 2}, "ddp": {}}},
        good={"parallelism": {"deepspeed": {"zeroStage": 2}}},
    ),
)
