"""Adapters that cannot be merged are refused before training, and those alone: merging says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_api.resolved import StageConfig
from finetune_trainer import methods, model, publish
from finetune_trainer.export import merge, mergeable
from finetune_trainer.export.clean import logits_of
from harness.chat_rows import chats, refused
from harness.stage_config import make_config
from harness.tiny_model import make_tiny_model

ENDS = ["q_proj", "embed_tokens", "lm_head"]
MERGED: dict[str, dict[str, Any]] = {
    "linear layers": {},
    "saved output": {"modulesToSave": ["lm_head"]},
    "saved input": {"modulesToSave": ["embed_tokens"]},
    "saved both": {"modulesToSave": ["embed_tokens", "lm_head"]},
    "saved and tied": {"modulesToSave": ["embed_tokens"], "ensureWeightTying": True},
    "tokens": {"trainableTokenIndices": [3, 5]},
    "input saved, output a target": {
        "targetModules": ["q_proj", "lm_head"],
        "modulesToSave": ["embed_tokens"],
    },
    "output saved, input a target": {
        "targetModules": ["q_proj", "embed_tokens"],
        "modulesToSave": ["lm_head"],
    },
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "output": ({"targetModules": ["q_proj", "lm_head"]}, "lm_head"),
    "output by expression": ({"targetModules": ".*(q_proj|lm_head)"}, "lm_head"),
    "output with DoRA": ({"targetModules": ["q_proj", "lm_head"], "useDora": True}, "lm_head"),
    "input": ({"targetModules": ["q_proj", "embed_tokens"]}, "model.embed_tokens"),
    "both": ({"targetModules": ENDS}, "lm_head"),
    "both tied": ({"targetModules": ENDS, "ensureWeightTying": True}, "lm_head"),
    "input's weight": ({"targetParameters": ["embed_tokens.weight"]}, "model.embed_tokens"),
    "output, tokens of the input": (
        {"targetModules": ["q_proj", "lm_head"], "trainableTokenIndices": [3]},
        "lm_head",
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied model as ``tiny``, one that is not as ``loose``."""
    root = tmp_path_factory.mktemp("job")
    make_tiny_model(root / "volumes" / "models" / "tiny", tied=True)
    make_tiny_model(root / "volumes" / "models" / "loose")
    return root


def job(root: Path, lora: dict[str, Any], **spec: Any) -> StageConfig:
    return make_config(root, "prepare", {"method": {"lora": {"dropout": 0, **lora}}, **spec})


def merging_changes(config: StageConfig, folder: Path) -> float:
    """Return by how much merging moves the logits of an adapter of some size."""
    import torch

    torch.manual_seed(1)
    network = methods.apply(model.load_model(config), config)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    network.save_pretrained(folder)
    loaded = merge.load_trained(config, folder, torch.float32)
    inputs = [list(range(3, 30))]
    before = logits_of(loaded, inputs)
    after = logits_of(merge.merge(loaded), inputs)
    pairs = zip(before.values(), after.values(), strict=True)
    return max(float((one - two).abs().max()) for one, two in pairs)


@pytest.mark.parametrize("name", MERGED)
def test_what_can_be_merged_is_accepted(root: Path, tmp_path: Path, name: str) -> None:
    config = job(root, MERGED[name])
    assert mergeable.refusal(config) is None
    assert merging_changes(config, tmp_path) < 1e-5


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_on_a_tied_weight_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    lora, layer = REFUSED[name]
    config = job(root, lora)
    (problem,) = publish.check_output(config)
    other = {"lm_head": "model.embed_tokens", "model.embed_tokens": "lm_head"}[layer]
    whole = layer.removeprefix("model.")
    assert problem == Problem(
        code="merge-not-possible",
        message=f"the adapter changes {layer}, whose weight is the one of {other} too, so the "
        "adapter cannot be merged",
        fix="set output.merge: false"
        + (
            ""
            if "trainableTokenIndices" in lora
            else f", or train {whole} whole: name it in modulesToSave and not as a target"
        ),
        field="spec.output.merge",
    )
    if "trainableTokenIndices" not in lora:  # there peft leaves the output layer half merged
        assert merging_changes(config, tmp_path) > 1e-2
    assert publish.check_output(job(root, lora, output={"merge": False})) == []
    assert publish.check_output(job(root, lora, model={"uri": "pvc://models/loose"})) == []


def test_weights_that_are_not_tied_can_be_targets(root: Path, tmp_path: Path) -> None:
    config = job(root, {"targetModules": ENDS}, model={"uri": "pvc://models/loose"})
    assert merging_changes(config, tmp_path) < 1e-5


def test_preparation_says_it_before_data_are_made(root: Path) -> None:
    spec = {"method": {"lora": {"targetModules": ["q_proj", "lm_head"]}}}
    code, report = refused(root, chats(20), spec)
    assert code == ExitCode.INVALID_CONFIG
    assert [problem.code for problem in report.problems] == ["merge-not-possible"]
    assert report.train is None
