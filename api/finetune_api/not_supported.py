"""What this release cannot do yet: refused by a row, never accepted and ignored.

Work on a feature ends with the removal of its row; no row is ever added to a release.
"""

from __future__ import annotations

from typing import Any

from finetune_api.condition import All, Condition, Either, Eq, Greater, Has, In, Not, StartsWith
from finetune_api.contradictions.inputs import SOURCES
from finetune_api.rule import Change, Rule


def _row(
    feature: str,
    field: str,
    when: Condition,
    what: str,
    fix: str,
    bad: Change,
    good: Change,
    each: tuple[str, ...] = (),
) -> Rule:
    return Rule(
        code=f"not-supported-{feature}",
        field=field,
        when=when,
        message=f"not supported yet: {what}",
        fix=fix,
        bad=bad,
        good=good,
        each=each,
    )


def _present(feature: str, field: str, what: str, fix: str, bad: Change, good: Change) -> Rule:
    return _row(feature, field, Has(field), what, fix, bad, good)


def _method(kind: str, what: str) -> Rule:
    fix = "use method: {lora: {}} or method: {full: {}}"
    bad: dict[str, Any] = {"method": {kind: {}}}
    return _present(_kebab(kind), f"method.{kind}", what, fix, bad, {"method": {"lora": {}}})


def _objective(kind: str, what: str) -> Rule:
    fix = "use objective: {sft: {}}"
    bad: dict[str, Any] = {"objective": {kind: {}}}
    return _present(_kebab(kind), f"objective.{kind}", what, fix, bad, {"objective": {"sft": {}}})


def _size(kind: str, what: str) -> Rule:
    field = f"parallelism.{kind}ParallelSize"
    fix = f"set {field} to 1 or leave it out; use deepspeed with zeroStage: 3 for large models"
    when = Greater(field, 1)
    return _row(f"{kind}-parallelism", field, when, what, fix, {field: 2}, {field: 1})


def _kebab(name: str) -> str:
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in name)


NOT_SUPPORTED: tuple[Rule, ...] = (
    _method("houlsby", "Houlsby adapters"),
    _method("prefixTuning", "prefix tuning"),
    _method("promptTuning", "prompt tuning"),
    _method("pTuning", "p-tuning"),
    _objective("pretrain", "pretraining"),
    _objective("dpo", "direct preference optimisation"),
    _objective("kto", "Kahneman-Tversky optimisation"),
    _objective("reward", "reward models"),
    _objective("orpo", "odds-ratio preference optimisation"),
    _objective("supervised", "task heads"),
    _row(
        "lora-initialisation",
        "method.lora.initLoraWeights",
        All(
            Has("method.lora.initLoraWeights"),
            Not(In("method.lora.initLoraWeights", ("default", "gaussian", "orthogonal"))),
        ),
        "initialisations that change the base model (eva, olora, pissa, corda, loftq, mica)",
        "use default, gaussian or orthogonal, or leave initLoraWeights out",
        {"method": {"lora": {"initLoraWeights": "pissa_niter_16"}}},
        {"method": {"lora": {"initLoraWeights": "gaussian"}}},
    ),
    _present(
        "layer-replication",
        "method.lora.layerReplication",
        "layers that are repeated",
        "leave layerReplication out",
        {"method": {"lora": {"layerReplication": [[0, 2], [1, 3]]}}},
        {"method": {"lora": {"layersToTransform": [0, 1]}}},
    ),
    _row(
        "task",
        "model.task",
        All(Has("model.task"), Not(Eq("model.task", "CausalLM"))),
        "tasks other than CausalLM",
        "leave task out",
        {"model.task": "TokenClassification"},
        {"model.task": "CausalLM"},
    ),
    _row(
        "from-config",
        "model.initialization",
        Eq("model.initialization", "FromConfig"),
        "training from scratch",
        "leave initialization out to start from the pretrained weights",
        {"model.initialization": "FromConfig"},
        {"model.initialization": "Pretrained"},
    ),
    _row(
        "attention",
        "model.attention",
        All(Has("model.attention"), Not(In("model.attention", ("sdpa", "eager")))),
        "attention other than sdpa and eager",
        "leave attention out",
        {"model.attention": "flash_attention_2"},
        {"model.attention": "eager"},
    ),
    _present(
        "quantization",
        "model.quantization",
        "quantised base models",
        "leave quantization out",
        {"model.quantization": "nf4"},
        {},
    ),
    _row(
        "remote-code",
        "model.remoteCode",
        Eq("model.remoteCode", True),
        "code that comes with the model",
        "leave remoteCode out and use an architecture that transformers knows",
        {"model.remoteCode": True},
        {"model.remoteCode": False},
    ),
    _present(
        "add-tokens",
        "model.addTokens",
        "tokens that are added to the vocabulary",
        "leave addTokens out",
        {"model.addTokens": ["<tool>"]},
        {},
    ),
    _present(
        "adapter",
        "model.adapter",
        "starting from an adapter",
        "merge the adapter into its base and name the result in model.uri",
        {"model.adapter": {"uri": "pvc://models/adapter"}},
        {"model.uri": "pvc://models/merged"},
    ),
    _row(
        "modelscope",
        "model.uri",
        StartsWith("model.uri", "modelscope://"),
        "models from modelscope",
        "use hf://owner/name, or pvc://claim/path",
        {"model.uri": "modelscope://Qwen/Qwen2.5-0.5B-Instruct"},
        {"model.uri": "hf://Qwen/Qwen2.5-0.5B-Instruct"},
    ),
    _row(
        "modelscope-tokenizer",
        "model.tokenizer.uri",
        StartsWith("model.tokenizer.uri", "modelscope://"),
        "tokenizers from modelscope",
        "use hf://owner/name, or pvc://claim/path",
        {"model.tokenizer": {"uri": "modelscope://Qwen/Qwen2.5-0.5B-Instruct"}},
        {"model.tokenizer": {"uri": "pvc://models/tokenizer"}},
    ),
    _row(
        "model-from-job",
        "model.uri",
        StartsWith("model.uri", "job://"),
        "the output of another job as the model",
        "name its folder: pvc://claim/path",
        {"model.uri": "job://sft-run"},
        {"model.uri": "pvc://models/sft-run"},
    ),
    _row(
        "tokenizer-from-job",
        "model.tokenizer.uri",
        StartsWith("model.tokenizer.uri", "job://"),
        "the output of another job as the tokenizer",
        "name its folder: pvc://claim/path",
        {"model.tokenizer": {"uri": "job://sft-run"}},
        {"model.tokenizer": {"uri": "pvc://models/sft-run"}},
    ),
    _row(
        "hub-data",
        "@.uri",
        Either(StartsWith("@.uri", "hf://"), StartsWith("@.uri", "modelscope://")),
        "data from a hub",
        "copy the data to a claim and name it as pvc://claim/path",
        {"dataset": {"train": [{"uri": "hf://owner/rows"}]}},
        {"dataset": {"train": [{"uri": "pvc://datasets/rows.jsonl"}]}},
        SOURCES,
    ),
    _row(
        "format",
        "@.format",
        All(Has("@.format"), Not(In("@.format", ("Messages", "ShareGPT", "Alpaca")))),
        "formats other than Messages, ShareGPT and Alpaca",
        "convert the rows to one of these three",
        {"dataset": {"train": [{"uri": "pvc://datasets/a.jsonl", "format": "Text"}]}},
        {"dataset": {"train": [{"uri": "pvc://datasets/a.jsonl", "format": "ShareGPT"}]}},
        SOURCES,
    ),
    _present(
        "fsdp",
        "parallelism.fsdp",
        "fsdp",
        "use deepspeed: {zeroStage: 3}, which divides weights, gradients and optimizer alike",
        {"parallelism": {"fsdp": {}}},
        {"parallelism": {"deepspeed": {"zeroStage": 3}}},
    ),
    _present(
        "optimizer-offload",
        "parallelism.deepspeed.offloadOptimizer",
        "offloading the optimizer to the CPU",
        "leave offloadOptimizer out",
        {"parallelism": {"deepspeed": {"zeroStage": 2, "offloadOptimizer": "cpu"}}},
        {"parallelism": {"deepspeed": {"zeroStage": 2}}},
    ),
    _present(
        "parameter-offload",
        "parallelism.deepspeed.offloadParameters",
        "offloading the parameters to the CPU",
        "leave offloadParameters out",
        {"parallelism": {"deepspeed": {"zeroStage": 3, "offloadParameters": "cpu"}}},
        {"parallelism": {"deepspeed": {"zeroStage": 3}}},
    ),
    _size("tensor", "tensor parallelism (a model sharded at load cannot be resumed)"),
    _size("pipeline", "pipeline parallelism (a model sharded at load cannot be resumed)"),
    _size("sequence", "sequence parallelism"),
    _row(
        "optimizer",
        "training.optimizer",
        In("training.optimizer", ("adafactor", "sgd", "lamb", "lion")),
        "optimizers other than AdamW",
        "use adamw_torch or adamw_torch_fused",
        {"training": {"optimizer": "lion"}},
        {"training": {"optimizer": "adamw_torch_fused"}},
    ),
    _present(
        "neftune",
        "training.neftuneAlpha",
        "noise on the embeddings",
        "leave neftuneAlpha out",
        {"training": {"neftuneAlpha": 5.0}},
        {"training": {}},
    ),
    _row(
        "label-smoothing",
        "training.labelSmoothing",
        Greater("training.labelSmoothing", 0.0),
        "label smoothing",
        "leave labelSmoothing out",
        {"training": {"labelSmoothing": 0.1}},
        {"training": {"labelSmoothing": 0.0}},
    ),
    _row(
        "compile",
        "training.compile",
        Eq("training.compile", True),
        "compiled models",
        "leave compile out",
        {"training": {"compile": True}},
        {"training": {"compile": False}},
    ),
    _row(
        "group-by-length",
        "training.sampling",
        Eq("training.sampling", "GroupByLength"),
        "batches of rows of like length",
        "use sampling: Random; packing wastes least",
        {"training": {"sampling": "GroupByLength"}},
        {"training": {"sampling": "Sequential"}},
    ),
    _present(
        "min-nodes",
        "resources.minNodes",
        "running on fewer nodes",
        "leave minNodes out",
        {"resources": {"nodes": 2, "minNodes": 1}},
        {"resources": {"nodes": 2}},
    ),
    _row(
        "metric",
        "@",
        Not(In("@", ("loss", "perplexity"))),
        "metrics other than loss and perplexity",
        "use [loss] or [loss, perplexity]",
        {"evaluation": {"metrics": ["loss", "rouge"]}},
        {"evaluation": {"metrics": ["loss", "perplexity"]}},
        ("evaluation.metrics",),
    ),
    _row(
        "gate-metric",
        "evaluation.gate.metric",
        All(
            Has("evaluation.gate.metric"), Not(In("evaluation.gate.metric", ("loss", "perplexity")))
        ),
        "a gate on metrics other than loss and perplexity",
        "leave gate.metric out",
        {"evaluation": {"gate": {"metric": "f1"}}, "dataset.validation": {"fraction": 0.1}},
        {"evaluation": {"gate": {"metric": "perplexity"}}, "dataset.validation": {"fraction": 0.1}},
    ),
    _present(
        "tensorboard",
        "reporting.tensorboard",
        "TensorBoard files",
        "leave it out; curves are in the report and in reports/metrics.jsonl",
        {"reporting": {"tensorboard": {}}},
        {"reporting": {}},
    ),
    _present(
        "wandb",
        "reporting.wandb",
        "Weights & Biases",
        "leave it out; curves are in the report and in reports/metrics.jsonl",
        {"reporting": {"wandb": {"project": "bots", "apiKeySecretRef": {"name": "wandb"}}}},
        {"reporting": {}},
    ),
    _row(
        "backend",
        "backend",
        In("backend", ("MPIJob", "TrainJob")),
        "the backends MPIJob and TrainJob",
        "leave backend out, or use PyTorchJob or Job",
        {"backend": "MPIJob"},
        {"backend": "Job"},
    ),
    _present(
        "managed-by",
        "managedBy",
        "jobs that another controller manages",
        "leave managedBy out",
        {"managedBy": "kueue.x-k8s.io/multikueue"},
        {},
    ),
)
