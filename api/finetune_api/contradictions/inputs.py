"""Model and data: where they come from, and what is held out to evaluate."""

from __future__ import annotations

from typing import Any

from finetune_api.condition import All, Count, Either, Eq, Has, Not, StartsWith
from finetune_api.rule import Rule

SOURCES = ("dataset.train", "dataset.validation.sources")


def one_source(**item: Any) -> list[dict[str, Any]]:
    """Return one source of data, as the examples of the rows write it."""
    return [{"uri": "pvc://datasets/train.jsonl", **item}]


ROWS: tuple[Rule, ...] = (
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
        code="stanford-without-system-prompt",
        field="dataset.systemPrompt",
        when=All(Has("dataset.systemPrompt"), Eq("dataset.alpacaPrompt", "Stanford")),
        message="alpacaPrompt: Stanford has no place for a systemPrompt",
        fix="leave systemPrompt out, or set alpacaPrompt: ChatTemplate",
        bad={"dataset.systemPrompt": "Be brief.", "dataset.alpacaPrompt": "Stanford"},
        good={"dataset.systemPrompt": "Be brief.", "dataset.alpacaPrompt": "ChatTemplate"},
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
        bad={"dataset": {"train": one_source(tokenSecretRef={"name": "hf"})}},
        good={"dataset": {"train": one_source()}},
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
        good={"dataset": {"train": one_source(weight=2.0)}},
    ),
)
