"""Methods: what is trained, what is refused before any weights are read, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api.job.method import Lora
from finetune_api.problem import Problem
from finetune_trainer import methods, model
from finetune_trainer.errors import StageError
from harness.stage_config import make_config
from harness.tiny_model import make_tiny_model

LINEAR = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("job")
    make_tiny_model(root / "volumes" / "models" / "tiny")
    return root


def lora(root: Path, **values: Any) -> Any:
    config = make_config(root, "prepare", {"method": {"lora": {"r": 4, "alpha": 8, **values}}})
    return methods.apply(model.load_model(config), config)


def trained(network: Any) -> set[str]:
    return {name for name, p in network.named_parameters() if p.requires_grad}


def problems(root: Path, **values: Any) -> list[Problem]:
    return methods.check_targets(make_config(root, "prepare", {"method": {"lora": values}}))


@pytest.mark.parametrize(
    ("model_name", "saved", "runs"),
    [
        ("tiny", ["lm_head"], True),
        ("tiny", ["embed_tokens"], False),
        ("tied", ["lm_head"], False),
        ("tied", ["embed_tokens"], False),
    ],
)
def test_tokens_of_a_layer_that_is_saved_whole(
    root: Path, model_name: str, saved: list[str], runs: bool
) -> None:
    import torch

    make_tiny_model(root / "volumes" / "models" / "tied", tied=True)
    values = {"targetModules": ["q_proj"], "trainableTokenIndices": [3], "modulesToSave": saved}
    spec = {"model": {"uri": f"pvc://models/{model_name}"}, "method": {"lora": values}}
    config = make_config(root, "prepare", spec)
    network = methods.apply(model.load_model(config), config)
    found = [(p.code, p.field) for p in methods.check_targets(config)]
    if runs:
        assert found == []
        assert network(input_ids=torch.arange(9)[None]).logits.shape == (1, 9, 400)
    else:
        assert found == [("tokens-of-a-saved-layer", "spec.method.lora.trainableTokenIndices")]
        with pytest.raises(ValueError, match="unknown layer type"):
            network(input_ids=torch.arange(9)[None])


def test_full_trains_everything(root: Path) -> None:
    config = make_config(root, "prepare", {"method": {"lora": None, "full": {}}})
    network = methods.apply(model.load_model(config), config)
    assert methods.counts(network) == methods.Counts(trainable=44_192, total=44_192)


def test_lora_on_all_linear_layers(root: Path) -> None:
    network = lora(root)
    # A layer: q and o 4 x (32 + 32), k and v 4 x (32 + 16), gate, up and down 4 x (32 + 64).
    assert methods.counts(network) == methods.Counts(
        trainable=2 * (2 * 256 + 2 * 192 + 3 * 384), total=44_192 + 4096
    )
    modules = {name.split(".lora_")[0].rpartition(".")[2] for name in trained(network)}
    assert modules == set(LINEAR.split())


def test_new_weights_depend_on_the_seed_alone(root: Path) -> None:
    import torch

    def first(seed: int, before: int) -> Any:
        torch.manual_seed(before)
        config = make_config(root, "prepare", {"training": {"seed": seed}})
        network = methods.apply(model.load_model(config), config)
        drawn = torch.rand(1)
        layer = network.base_model.model.model.layers[0].self_attn.q_proj
        return layer.lora_A["default"].weight.detach().clone(), drawn

    one, drawn_one = first(1, before=5)
    same, drawn_same = first(1, before=6)
    other, _ = first(2, before=5)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(drawn_one, drawn_same)  # the caller's random numbers go on undisturbed


def test_every_parameter_reaches_peft(root: Path) -> None:
    values: dict[str, Any] = {
        "r": 6,
        "alpha": 12.0,
        "dropout": 0.25,
        "bias": "lora_only",
        "target_modules": ["q_proj", "v_proj"],
        "exclude_modules": ["layers.0.self_attn.q_proj"],
        "target_parameters": ["mlp.up_proj.weight"],
        "use_rslora": True,
        "use_dora": True,
        "modules_to_save": ["lm_head"],
        "init_lora_weights": "gaussian",
        "layers_to_transform": [1],
        "layers_pattern": ["layers"],
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"q_proj": 3.0},
        "trainable_token_indices": [1, 2],
        "lora_bias": True,
        "fan_in_fan_out": True,
        "layer_replication": [[0, 2], [1, 2]],
        "ensure_weight_tying": True,
    }
    assert set(values) == set(Lora.model_fields)
    network = model.empty_model(make_config(root, "prepare"))
    found = methods.peft_config(Lora(**{**values, "lora_bias": False}), network)
    names = {"alpha": "lora_alpha", "dropout": "lora_dropout"}
    wanted = {
        **values,
        "target_modules": {"q_proj", "v_proj"},
        "exclude_modules": {"layers.0.self_attn.q_proj"},
        "layer_replication": [(0, 2), (1, 2)],
        "lora_bias": False,
    }
    for name, value in wanted.items():
        assert getattr(found, names.get(name, name)) == value, name
    # peft allows a bias in B with its default initialisation only.
    assert methods.peft_config(Lora(lora_bias=True), network).lora_bias
    assert methods.peft_config(Lora(), network).init_lora_weights is True


@pytest.mark.parametrize(
    "values",
    [
        {"useDora": True, "useRslora": True},
        {"initLoraWeights": "gaussian"},
        {"initLoraWeights": "orthogonal"},
        {"modulesToSave": ["lm_head"], "rankPattern": {"q_proj": 8}, "loraBias": True},
        {"targetModules": r".*layers\.1\..*(q|v)_proj"},
        {"layersToTransform": [1]},
        {"targetModules": ["q_proj"], "targetParameters": ["mlp.up_proj.weight"], "dropout": 0},
        {"trainableTokenIndices": [3, 7]},
        {"layerReplication": [[0, 2], [1, 2]]},
    ],
)
def test_what_is_accepted_trains(root: Path, values: dict[str, Any]) -> None:
    import torch

    assert problems(root, **values) == []
    network = lora(root, **values).train()
    ids = torch.arange(20).reshape(1, 20)
    network(input_ids=ids, labels=ids).loss.backward()
    with_gradient = {n for n, p in network.named_parameters() if p.grad is not None}
    assert with_gradient == trained(network) != set()


def test_target_that_matches_nothing(root: Path) -> None:
    (problem,) = problems(root, targetModules=["q_prj", "v_proj"])
    assert problem.to_json() == {
        "code": "target-not-found",
        "message": 'targetModules "q_prj" matches no module of tiny',
        "fix": f"did you mean q_proj? linear modules: {LINEAR}",
        "field": "spec.method.lora.targetModules[0]",
        "rows": [],
        "count": 1,
        "severity": "error",
    }
    (problem,) = problems(root, targetModules=["wxyz"])
    assert problem.fix == f"linear modules: {LINEAR}"
    (problem,) = problems(root, targetModules=r".*\.q_prj")
    assert problem.message == r'targetModules ".*\.q_prj" matches no module of tiny'
    assert problem.field == "spec.method.lora.targetModules"


@pytest.mark.parametrize(
    ("values", "code", "field"),
    [
        ({"targetModules": "(("}, "target-not-a-pattern", "targetModules"),
        ({"targetModules": "q_proj"}, "target-not-found", "targetModules"),
        ({"modulesToSave": ["lm_hed"]}, "target-not-found", "modulesToSave[0]"),
        ({"excludeModules": ["nothing"]}, "target-not-found", "excludeModules[0]"),
        ({"targetParameters": ["mlp.up.weight"]}, "target-not-found", "targetParameters[0]"),
        ({"layersToTransform": [0, 2]}, "layer-out-of-range", "layersToTransform[1]"),
        ({"layerReplication": [[0, 3]]}, "layer-out-of-range", "layerReplication[0]"),
        ({"trainableTokenIndices": [100000]}, "token-out-of-range", "trainableTokenIndices[0]"),
        ({"initLoraWeights": "pissa"}, "not-supported-yet", "initLoraWeights"),
        ({"initLoraWeights": "eva"}, "not-supported-yet", "initLoraWeights"),
    ],
)
def test_refusals(root: Path, values: dict[str, Any], code: str, field: str) -> None:
    (problem,) = problems(root, **values)
    assert (problem.code, problem.field) == (code, f"spec.method.lora.{field}")
    assert problem.fix


def test_what_peft_refuses_is_told_before_training(root: Path) -> None:
    (problem,) = problems(root, targetModules=["input_layernorm"])
    assert problem.code == "lora-refused"
    assert problem.fix == f"target linear modules: {LINEAR}"
    (problem,) = problems(root, initLoraWeights="orthogonal", r=3)
    assert problem.code == "lora-refused"
    assert "even" in problem.message


def test_other_methods_have_no_targets(root: Path) -> None:
    config = make_config(root, "prepare", {"method": {"lora": None, "full": {}}})
    assert methods.check_targets(config) == []


def test_routers_are_left_alone() -> None:
    """Mixture of experts: ``gate`` chooses experts, ``gate_proj`` computes."""
    import torch
    from transformers import AutoModelForCausalLM, DeepseekV2Config, JetMoeConfig

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 64,
    }
    with torch.device("meta"):
        for kind in (DeepseekV2Config(**small), JetMoeConfig(**small)):
            network = AutoModelForCausalLM.from_config(kind)
            names = methods.linear_names(network)
            assert names
            assert not [n for n in names if n.endswith((".gate", ".router", "lm_head"))]
    layer = torch.nn.ModuleDict(
        {"mlp": torch.nn.ModuleDict({"gate": torch.nn.Linear(4, 4), "up": torch.nn.Linear(4, 4)})}
    )
    layer["router"] = torch.nn.ModuleDict({"up": torch.nn.Linear(4, 4)})
    layer.get_output_embeddings = lambda: None
    assert methods.linear_names(layer) == ["mlp.up"]
    # The name ``up`` would reach the router's own layer too: it is excluded by its path.
    pattern = methods._router_pattern(["up"], layer)
    assert pattern is not None
    import re

    assert re.fullmatch(pattern, "router.up")
    assert not re.fullmatch(pattern, "mlp.up")


def test_nothing_is_kept_outside_the_trained_weights(root: Path, tmp_path: Path) -> None:
    """A rebuilt model with the saved adapter computes the same, for every accepted start."""
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    for start in sorted(methods.PLAIN_INITIALISATIONS):
        config = make_config(
            root,
            "prepare",
            {"method": {"lora": {"initLoraWeights": start, "modulesToSave": ["lm_head"]}}},
        )
        network = methods.apply(model.load_model(config), config).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        assert methods.state(network, config) == {}
        network.save_pretrained(tmp_path / start)
        rebuilt = methods.apply(model.load_model(config), config).eval()
        methods.restore(rebuilt, config, {})
        saved = load_file(tmp_path / start / "adapter_model.safetensors")
        set_peft_model_state_dict(rebuilt, saved)
        ids = torch.arange(20).reshape(1, 20)
        assert torch.equal(network(input_ids=ids).logits, rebuilt(input_ids=ids).logits)
    with pytest.raises(ValueError, match="unexpected state"):
        methods.restore(rebuilt, config, {"x": 1})


def test_a_method_that_is_not_there_yet(root: Path) -> None:
    config = make_config(root, "prepare", {"method": {"lora": None, "houlsby": {}}})
    with pytest.raises(StageError) as caught:
        methods.apply(None, config)
    assert caught.value.problems[0].field == "spec.method.houlsby"
