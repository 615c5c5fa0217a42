"""Training: schedule, sizes of batches, precision."""

from __future__ import annotations

from finetune_api.condition import All, Compare, Either, Eq, Greater, Has, In, Not, Remainder
from finetune_api.rule import Rule

ROWS: tuple[Rule, ...] = (
    Rule(
        code="warmup-at-most-one",
        field="training.warmupSteps",
        when=All(Has("training.warmupRatio"), Has("training.warmupSteps")),
        message="warmupRatio and warmupSteps contradict each other",
        fix="keep one of them",
        bad={"training": {"warmupRatio": 0.03, "warmupSteps": 10}},
        good={"training": {"warmupSteps": 10}},
    ),
    Rule(
        code="warmup-without-schedule",
        field="training.lrScheduler",
        when=All(
            Eq("training.lrScheduler", "constant"),
            Either(Greater("training.warmupRatio", 0.0), Greater("training.warmupSteps", 0)),
        ),
        message="the schedule constant has no warm-up",
        fix="use lrScheduler: constant_with_warmup, or leave the warm-up out",
        bad={"training": {"lrScheduler": "constant", "warmupRatio": 0.1}},
        good={"training": {"lrScheduler": "constant_with_warmup", "warmupRatio": 0.1}},
    ),
    Rule(
        code="min-learning-rate-without-floor",
        field="training.minLearningRate",
        when=All(
            Has("training.minLearningRate"),
            In(
                "training.lrScheduler",
                (
                    "linear",
                    "cosine_with_restarts",
                    "constant",
                    "constant_with_warmup",
                    "inverse_sqrt",
                ),
            ),
        ),
        message="this lrScheduler does not end at a lowest rate, and minLearningRate is set",
        fix="use lrScheduler: cosine, polynomial or warmup_stable_decay, or leave minLearningRate "
        "out",
        bad={"training": {"lrScheduler": "linear", "minLearningRate": 1e-6}},
        good={"training": {"lrScheduler": "cosine", "minLearningRate": 1e-6}},
    ),
    Rule(
        code="min-learning-rate-needed",
        field="training.lrScheduler",
        when=All(
            Eq("training.lrScheduler", "cosine_with_min_lr"), Not(Has("training.minLearningRate"))
        ),
        message="the schedule cosine_with_min_lr needs minLearningRate",
        fix="set training.minLearningRate, or use lrScheduler: cosine",
        bad={"training": {"lrScheduler": "cosine_with_min_lr"}},
        good={"training": {"lrScheduler": "cosine_with_min_lr", "minLearningRate": 1e-6}},
    ),
    Rule(
        code="min-learning-rate-too-high",
        field="training.minLearningRate",
        when=Compare("training.minLearningRate", ">", "training.learningRate"),
        message="minLearningRate must not be above learningRate",
        fix="set it to a tenth of learningRate, or leave it out",
        bad={"training": {"learningRate": 1e-5, "minLearningRate": 1e-4}},
        good={"training": {"learningRate": 1e-4, "minLearningRate": 1e-5}},
    ),
    Rule(
        code="micro-batch-divides",
        field="training.microBatchSize",
        when=Remainder("training.globalBatchSize", ("training.microBatchSize",)),
        message="globalBatchSize must be a multiple of microBatchSize",
        fix="choose a microBatchSize that divides it, or leave microBatchSize out",
        bad={"training": {"globalBatchSize": 64, "microBatchSize": 6}},
        good={"training": {"globalBatchSize": 64, "microBatchSize": 4}},
    ),
    Rule(
        code="world-divides",
        field="training.globalBatchSize",
        when=Remainder(
            "training.globalBatchSize", ("resources.nodes", "resources.processesPerNode")
        ),
        message="globalBatchSize must be a multiple of the number of processes "
        "(nodes x processesPerNode)",
        fix="round globalBatchSize to such a multiple, or leave it out",
        bad={
            "training": {"globalBatchSize": 64},
            "resources": {"nodes": 3, "processesPerNode": 1},
        },
        good={
            "training": {"globalBatchSize": 63},
            "resources": {"nodes": 3, "processesPerNode": 1},
        },
    ),
    Rule(
        code="micro-batch-times-world-divides",
        field="training.microBatchSize",
        when=Remainder(
            "training.globalBatchSize",
            ("training.microBatchSize", "resources.nodes", "resources.processesPerNode"),
        ),
        message="globalBatchSize must be a multiple of microBatchSize x nodes x processesPerNode",
        fix="lower microBatchSize, raise globalBatchSize, or leave one of the two out",
        bad={
            "training": {"globalBatchSize": 8, "microBatchSize": 8},
            "resources": {"nodes": 2, "processesPerNode": 1},
        },
        good={
            "training": {"globalBatchSize": 16, "microBatchSize": 8},
            "resources": {"nodes": 2, "processesPerNode": 1},
        },
    ),
    Rule(
        code="fp16-on-cpu",
        field="training.precision",
        when=All(Eq("training.precision", "fp16"), Eq("resources.accelerator.device", "cpu")),
        message="fp16 needs an accelerator; a CPU has no gradient scaling for it",
        fix="use precision: bf16 or fp32",
        bad={"training": {"precision": "fp16"}, "resources": {"accelerator": {"device": "cpu"}}},
        good={"training": {"precision": "bf16"}, "resources": {"accelerator": {"device": "cpu"}}},
    ),
    Rule(
        code="pure-bf16-under-deepspeed",
        field="training.precision",
        when=All(Eq("training.precision", "pureBf16"), Has("parallelism.deepspeed")),
        message="pureBf16 has no meaning under DeepSpeed, which keeps fp32 master weights",
        fix="use precision: bf16, or parallelism: {ddp: {}}",
        bad={
            "training": {"precision": "pureBf16"},
            "parallelism": {"deepspeed": {"zeroStage": 2}},
        },
        good={"training": {"precision": "pureBf16"}, "parallelism": {"ddp": {}}},
    ),
)
