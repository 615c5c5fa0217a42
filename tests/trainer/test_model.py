"""Loading: the types of weights by precision and method, small models of an architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.resolved import StageConfig
from finetune_trainer import methods, model
from finetune_trainer.errors import StageError
from harness.stage_config import make_config
from harness.tiny_model import make_tiny_model

FULL = {"lora": None, "full": {}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("job")
    make_tiny_model(root / "volumes" / "models" / "tiny")
    return root


def architecture(root: Path, name: str, values: dict[str, Any]) -> StageConfig:
    """A job on a model of another architecture: configuration alone, weights of no meaning."""
    source = root / "volumes" / "models" / "tiny"
    folder = root / "volumes" / "models" / name
    folder.mkdir()
    for path in source.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    (folder / "config.json").write_text(json.dumps({"model_type": name, **values}))
    return make_config(root, "prepare", {"model": {"uri": f"pvc://models/{name}"}})


@pytest.mark.parametrize(
    ("precision", "method", "trained", "frozen"),
    [
        ("fp32", {}, "float32", "float32"),
        ("bf16", {}, "float32", "bfloat16"),
        ("fp16", {}, "float32", "float16"),
        ("pureBf16", {}, "bfloat16", "bfloat16"),
        ("fp32", FULL, "float32", None),
        ("bf16", FULL, "float32", None),
        ("fp16", FULL, "float32", None),
        ("pureBf16", FULL, "bfloat16", None),
    ],
)
def test_types_of_weights(
    root: Path, precision: str, method: dict[str, Any], trained: str, frozen: str | None
) -> None:
    config = make_config(root, "prepare", {"method": method, "training": {"precision": precision}})
    network = methods.apply(model.load_model(config), config)
    types = {
        wanted: {
            str(p.dtype).removeprefix("torch.")
            for p in network.parameters()
            if p.requires_grad is wanted
        }
        for wanted in (True, False)
    }
    assert types == {True: {trained}, False: {frozen} if frozen else set()}


def test_biases_and_saved_modules_are_trained_in_fp32(root: Path) -> None:
    import torch

    config = make_config(
        root,
        "prepare",
        {
            "method": {"lora": {"modulesToSave": ["lm_head"], "bias": "all"}},
            "training": {"precision": "bf16"},
        },
    )
    network = methods.apply(model.load_model(config), config)
    saved = network.base_model.model.lm_head.modules_to_save["default"].weight
    assert saved.dtype == torch.float32
    assert saved.requires_grad


def test_loading_as_the_job_says(root: Path) -> None:
    config = make_config(
        root,
        "prepare",
        {"model": {"attention": "eager"}, "training": {"gradientCheckpointing": True}},
    )
    network = model.load_model(config)
    assert network.config._attn_implementation == "eager"
    assert network.config.use_cache is False
    assert network.is_activation_checkpointing
    plain = model.load_model(make_config(root, "prepare"))
    assert plain.config._attn_implementation == "sdpa"
    assert not plain.is_activation_checkpointing


def test_recomputation_changes_no_gradient(root: Path) -> None:
    import torch

    gradients = []
    for recompute in (False, True):
        config = make_config(root, "prepare", {"training": {"gradientCheckpointing": recompute}})
        network = methods.apply(model.load_model(config), config).train()
        ids = torch.arange(40).reshape(2, 20)
        torch.manual_seed(3)
        network(input_ids=ids, labels=ids).loss.backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == 28  # 2 layers x 7 linear modules x (A, B)
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_a_tokenizer_without_a_pad_token_gets_one(root: Path, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "volumes" / "models" / "tiny")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = model.load_tokenizer(make_config(tmp_path, "prepare"))
    assert tokenizer.pad_token == "<|im_end|>"


def test_an_architecture_that_nobody_knows(root: Path) -> None:
    config = architecture(root, "notamodel", {})
    with pytest.raises(StageError) as caught:
        model.load_model_config(config)
    assert caught.value.exit_code is ExitCode.MODEL_UNAVAILABLE
    assert caught.value.problems[0].code == "model-architecture-unknown"


def test_an_empty_model_has_every_module_and_no_weights(root: Path) -> None:
    config = make_config(root, "prepare")
    empty = model.empty_model(config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert sum(p.numel() for p in empty.parameters()) == 44_192


LARGE = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("llama", {**LARGE, "vocab_size": 128256, "num_key_value_heads": 8}),
        ("qwen3_moe", {"num_experts": 128, "num_hidden_layers": 48}),
        ("gemma3_text", {"vocab_size": 262144}),
        ("gpt2", {"n_embd": 768, "n_layer": 12}),
        ("mistral", {**LARGE, "num_key_value_heads": 8}),
        ("deepseek_v3", {}),
    ],
)
def test_a_small_model_of_a_large_architecture(
    root: Path, name: str, values: dict[str, Any]
) -> None:
    import torch

    config = architecture(root, name, values)
    small = model.tiny(config)
    text = small.config.get_text_config()
    assert text.num_hidden_layers == 2
    assert text.model_type == name
    assert sum(p.numel() for p in small.parameters()) < 2_000_000
    again = model.tiny(config)
    assert all(
        torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True)
    )


def test_attention_that_the_architecture_has_not(root: Path) -> None:
    config = architecture(root, "gpt_oss", {})
    model_config = model.load_model_config(config)
    assert model.attention(config, model_config) == "eager"  # nobody asked for sdpa
    asked = config.job.model_copy(update={"origins": {"model.attention": "user"}})
    with pytest.raises(StageError) as caught:
        model.attention(config.model_copy(update={"job": asked}), model_config)
    problem = caught.value.problems[0]
    assert problem.code == "attention-not-supported"
    assert problem.fix == "leave spec.model.attention out, or set it to eager"
