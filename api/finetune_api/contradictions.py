"""Specs that contradict themselves: the rows that stay."""

from __future__ import annotations

from typing import Any

from finetune_api.condition import (
    All,
    Compare,
    Count,
    Either,
    Eq,
    Greater,
    Has,
    In,
    Not,
    Remainder,
    StartsWith,
    any_of,
)
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
SOURCES = ("dataset.train", "dataset.validation.sources")


def _one_source(**item: Any) -> list[dict[str, Any]]:
    return [{"uri": "pvc://datasets/train.jsonl", **item}]


PREFERENCE_OBJECTIVES = ("objective.dpo", "objective.reward", "objective.orpo")
PROMPT_METHODS = ("method.prefixTuning", "method.promptTuning", "method.pTuning")
HEADED_TASKS = (
    "SequenceClassification",
    "Seq2SeqLM",
    "TokenClassification",
    "QuestionAnswering",
    "FeatureExtraction",
)

CONTRADICTIONS: tuple[Rule, ...] = (
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
        code="min-nodes-above-nodes",
        field="resources.minNodes",
        when=Compare("resources.minNodes", ">", "resources.nodes"),
        message="minNodes must not be above nodes",
        fix="lower minNodes, or raise nodes",
        bad={"resources": {"nodes": 2, "minNodes": 3}},
        good={"resources": {"nodes": 2}},
    ),
    Rule(
        code="accelerator-needed",
        field="resources.accelerator.perNode",
        when=All(
            Eq("resources.accelerator.perNode", 0), Eq("resources.accelerator.device", "cuda")
        ),
        message="device cuda needs at least one accelerator a node",
        fix="set accelerator.perNode to 1 or more, or device: cpu",
        bad={"resources": {"accelerator": {"perNode": 0, "device": "cuda"}}},
        good={"resources": {"accelerator": {"perNode": 0, "device": "cpu"}}},
    ),
    Rule(
        code="more-processes-than-accelerators",
        field="resources.processesPerNode",
        when=All(
            Eq("resources.accelerator.device", "cuda"),
            Compare("resources.processesPerNode", ">", "resources.accelerator.perNode"),
        ),
        message="processesPerNode must not be above accelerator.perNode: each has its own",
        fix="leave processesPerNode out",
        bad={
            "resources": {
                "processesPerNode": 2,
                "accelerator": {"perNode": 1, "device": "cuda"},
            }
        },
        good={
            "resources": {
                "processesPerNode": 2,
                "accelerator": {"perNode": 2, "device": "cuda"},
            }
        },
    ),
    Rule(
        code="toleration-exists-value",
        field="@.value",
        each=("resources.tolerations",),
        when=All(Eq("@.operator", "Exists"), Has("@.value")),
        message="a toleration with operator Exists has no value",
        fix="leave value out, or use operator: Equal",
        bad={"resources": {"tolerations": [{"key": "gpu", "operator": "Exists", "value": "yes"}]}},
        good={"resources": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}},
    ),
    Rule(
        code="toleration-of-node-condition",
        field="@.key",
        each=("resources.tolerations",),
        when=StartsWith("@.key", "node.kubernetes.io/"),
        message="a job must not tolerate node.kubernetes.io/*: it would stay on a lost node",
        fix="leave it out; not-ready and unreachable nodes are tolerated for 60 seconds",
        bad={
            "resources": {
                "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists"}]
            }
        },
        good={"resources": {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}},
    ),
    Rule(
        code="workspace-claim-or-size",
        field="workspace",
        when=All(
            Has("workspace.claimName"),
            Either(Has("workspace.size"), Has("workspace.storageClassName")),
        ),
        message="a workspace is an existing claim (claimName) or one that is made (size, "
        "storageClassName), not both",
        fix="leave claimName out, or size and storageClassName",
        bad={"workspace": {"claimName": "scratch", "size": "500Gi"}},
        good={"workspace": {"size": "500Gi", "storageClassName": "fast-rwx"}},
    ),
    Rule(
        code="validation-exactly-one",
        field="dataset.validation",
        when=All(
            Has("dataset.validation"),
            Count(("dataset.validation.fraction", "dataset.validation.sources"), "!=", 1),
        ),
        message="dataset.validation must hold exactly one of fraction and sources",
        fix="keep one of them, or leave validation out",
        bad={
            "dataset.validation": {
                "fraction": 0.02,
                "sources": [{"uri": "pvc://datasets/validation.jsonl"}],
            }
        },
        good={"dataset.validation": {"sources": [{"uri": "pvc://datasets/validation.jsonl"}]}},
    ),
    Rule(
        code="drop-needs-limit",
        field="dataset.maxInvalidFraction",
        when=All(Eq("dataset.invalidRows", "Drop"), Not(Has("dataset.maxInvalidFraction"))),
        message="invalidRows: Drop needs maxInvalidFraction",
        fix="set dataset.maxInvalidFraction, such as 0.01",
        bad={"dataset.invalidRows": "Drop"},
        good={"dataset.invalidRows": "Drop", "dataset.maxInvalidFraction": 0.01},
    ),
    Rule(
        code="limit-needs-drop",
        field="dataset.maxInvalidFraction",
        when=All(Has("dataset.maxInvalidFraction"), Eq("dataset.invalidRows", "Fail")),
        message="maxInvalidFraction has no meaning with invalidRows: Fail",
        fix="use invalidRows: Drop, or leave maxInvalidFraction out",
        bad={"dataset.invalidRows": "Fail", "dataset.maxInvalidFraction": 0.01},
        good={"dataset.invalidRows": "Fail"},
    ),
    Rule(
        code="config-overrides-need-from-config",
        field="model.configOverrides",
        when=All(Has("model.configOverrides"), Not(Eq("model.initialization", "FromConfig"))),
        message="configOverrides changes the shape of a model that is trained from scratch; it "
        "needs initialization: FromConfig",
        fix="leave configOverrides out, or set initialization: FromConfig",
        bad={"model.configOverrides": {"num_hidden_layers": 4}},
        good={"model.initialization": "Pretrained"},
    ),
    Rule(
        code="early-stopping-needs-validation",
        field="evaluation.earlyStopping",
        when=All(Has("evaluation.earlyStopping"), Not(Has("dataset.validation"))),
        message="earlyStopping needs validation data",
        fix="set dataset.validation, such as {fraction: 0.02}",
        bad={"evaluation": {"earlyStopping": {"patience": 3}}},
        good={
            "evaluation": {"earlyStopping": {"patience": 3}},
            "dataset.validation": {"fraction": 0.02},
        },
    ),
    Rule(
        code="gate-needs-validation",
        field="evaluation.gate",
        when=All(Has("evaluation.gate"), Not(Has("dataset.validation"))),
        message="a gate needs validation data",
        fix="set dataset.validation, such as {fraction: 0.02}",
        bad={"evaluation": {"gate": {"metric": "loss"}}},
        good={
            "evaluation": {"gate": {"metric": "loss"}},
            "dataset.validation": {"fraction": 0.02},
        },
    ),
    Rule(
        code="revision-needs-hub",
        field="model.revision",
        when=All(
            Has("model.revision"),
            Either(StartsWith("model.uri", "pvc://"), StartsWith("model.uri", "job://")),
        ),
        message="only a model on a hub has a revision",
        fix="leave revision out, or use an hf:// model",
        bad={"model": {"uri": "pvc://models/qwen", "revision": "main"}},
        good={"model": {"uri": "hf://Qwen/Qwen2.5-0.5B-Instruct", "revision": "main"}},
    ),
    Rule(
        code="endpoint-needs-hub",
        field="model.endpoint",
        when=All(
            Has("model.endpoint"),
            Either(StartsWith("model.uri", "pvc://"), StartsWith("model.uri", "job://")),
        ),
        message="only a model on a hub has an endpoint",
        fix="leave endpoint out, or use an hf:// model",
        bad={"model": {"uri": "pvc://models/qwen", "endpoint": "https://mirror.example"}},
        good={
            "model": {
                "uri": "hf://Qwen/Qwen2.5-0.5B-Instruct",
                "endpoint": "https://mirror.example",
            }
        },
    ),
    Rule(
        code="data-from-job",
        field="@.uri",
        each=SOURCES,
        when=StartsWith("@.uri", "job://"),
        message="another job leaves a model, not data",
        fix="use pvc://claim/path",
        bad={"dataset": {"train": [{"uri": "job://sft-run"}]}},
        good={"dataset": {"train": [{"uri": "pvc://datasets/support.jsonl"}]}},
    ),
    Rule(
        code="secret-needs-hub",
        field="@.tokenSecretRef",
        each=SOURCES,
        when=All(Has("@.tokenSecretRef"), StartsWith("@.uri", "pvc://")),
        message="data in a claim needs no token",
        fix="leave tokenSecretRef out",
        bad={"dataset": {"train": _one_source(tokenSecretRef={"name": "hf"})}},
        good={"dataset": {"train": _one_source()}},
    ),
    Rule(
        code="weight-of-validation",
        field="@.weight",
        each=("dataset.validation.sources",),
        when=All(Has("@.weight"), Not(Eq("@.weight", 1.0))),
        message="a weight says how often rows are trained; validation rows are not",
        fix="leave weight out",
        bad={
            "dataset.validation": {
                "sources": [{"uri": "pvc://datasets/validation.jsonl", "weight": 2.0}]
            }
        },
        good={"dataset": {"train": _one_source(weight=2.0)}},
    ),
    Rule(
        code="preference-data-needs-preference-objective",
        field="@.format",
        each=SOURCES,
        when=All(
            Eq("@.format", "Preference"),
            any_of(("objective.sft", "objective.pretrain", "objective.supervised")),
        ),
        message="preference pairs are for the objectives dpo, orpo, reward and kto",
        fix="choose one of these objectives, or another format",
        bad={"dataset": {"train": _one_source(format="Preference")}, "objective": {"sft": {}}},
        good={"dataset": {"train": _one_source(format="Messages")}, "objective": {"sft": {}}},
    ),
    Rule(
        code="preference-objective-needs-preference-data",
        field="@.format",
        each=SOURCES,
        when=All(any_of(PREFERENCE_OBJECTIVES), Has("@.format"), Not(Eq("@.format", "Preference"))),
        message="dpo, orpo and reward need preference pairs",
        fix="use format: Preference, or objective: {sft: {}}",
        bad={"dataset": {"train": _one_source(format="Messages")}, "objective": {"dpo": {}}},
        good={"dataset": {"train": _one_source(format="Messages")}, "objective": {"sft": {}}},
    ),
    Rule(
        code="kto-needs-feedback",
        field="@.format",
        each=SOURCES,
        when=All(
            Has("objective.kto"),
            Has("@.format"),
            Not(In("@.format", ("Unpaired", "Preference"))),
        ),
        message="kto needs answers that are marked as good or bad",
        fix="use format: Unpaired or Preference, or objective: {sft: {}}",
        bad={"dataset": {"train": _one_source(format="Alpaca")}, "objective": {"kto": {}}},
        good={"dataset": {"train": _one_source(format="Alpaca")}, "objective": {"sft": {}}},
    ),
    Rule(
        code="unpaired-data-needs-kto",
        field="@.format",
        each=SOURCES,
        when=All(
            Eq("@.format", "Unpaired"),
            any_of(
                (
                    "objective.sft",
                    "objective.pretrain",
                    "objective.supervised",
                    *PREFERENCE_OBJECTIVES,
                )
            ),
        ),
        message="unpaired feedback is for the objective kto",
        fix="use objective: {kto: {}}, or another format",
        bad={"dataset": {"train": _one_source(format="Unpaired")}, "objective": {"sft": {}}},
        good={"dataset": {"train": _one_source(format="ShareGPT")}, "objective": {"sft": {}}},
    ),
    Rule(
        code="pretrain-needs-text",
        field="@.format",
        each=SOURCES,
        when=All(
            Has("objective.pretrain"), Has("@.format"), Not(In("@.format", ("Text", "Tokens")))
        ),
        message="pretraining reads plain text or tokens",
        fix="use format: Text or Tokens, or objective: {sft: {}}",
        bad={"dataset": {"train": _one_source(format="Messages")}, "objective": {"pretrain": {}}},
        good={"dataset": {"train": _one_source(format="Messages")}, "objective": {"sft": {}}},
    ),
    Rule(
        code="labels-need-supervised",
        field="@.format",
        each=SOURCES,
        when=All(
            In("@.format", ("Labelled", "Spans")),
            any_of(path for path in OBJECTIVES if path != "objective.supervised"),
        ),
        message="labelled rows are for the objective supervised, with a task other than CausalLM",
        fix="set model.task and objective: {supervised: {}}, or use another format",
        bad={"dataset": {"train": _one_source(format="Labelled")}, "objective": {"sft": {}}},
        good={"dataset": {"train": _one_source(format="Messages")}, "objective": {"sft": {}}},
    ),
    Rule(
        code="supervised-needs-task",
        field="objective.supervised",
        when=All(Has("objective.supervised"), Eq("model.task", "CausalLM")),
        message="the objective supervised needs a task other than CausalLM",
        fix="set model.task, such as SequenceClassification, or use objective: {sft: {}}",
        bad={"model.task": "CausalLM", "objective": {"supervised": {}}},
        good={"model.task": "CausalLM", "objective": {"sft": {}}},
    ),
    Rule(
        code="task-needs-supervised",
        field="model.task",
        when=All(
            In("model.task", HEADED_TASKS),
            any_of(path for path in OBJECTIVES if path != "objective.supervised"),
        ),
        message="a task other than CausalLM is trained with the objective supervised",
        fix="use objective: {supervised: {}}, or task: CausalLM",
        bad={"model.task": "SequenceClassification", "objective": {"sft": {}}},
        good={"model.task": "CausalLM", "objective": {"sft": {}}},
    ),
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
