"""All the trained weights come back from a checkpoint, whatever names an architecture is saved under."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from finetune_api.names import Layout
from finetune_api.resolved import StageConfig
from finetune_trainer import base_weights, model, trainer_class
from finetune_trainer.checkpoint import save, trained, verify
from finetune_trainer.errors import StageError, ending_of
from finetune_trainer.export import merge
from harness.prepared_job import prepared_job, train_here, with_attempt
from harness.prepared_job import values as metric
from harness.stage_config import make_config, merged, one_step

FULL: dict[str, Any] = {"method": {"lora": None, "full": {}}}
SMALL = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {**GROUPED, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
OTHER_NAMES: dict[str, str] = {
    "gpt_neox": "embed_out.weight",
    "mixtral": "block_sparse_moe",
    "qwen2_moe": "experts.0.",
    "qwen3_moe": "experts.0.",
    "qwen3_next": "experts.0.",
    "olmoe": "experts.0.",
    "deepseek_v3": "experts.0.",
    "glm4_moe": "experts.0.",
    "granitemoe": "input_linear",
    "ernie4_5_moe": "experts.0.",
    "minimax": "block_sparse_moe",
    "jamba": "experts.0.",
}
"""Part of a name in the files that the model in memory has not."""
VALUES = {"deepseek_v3": {"first_k_dense_replace": 1}}
SAME_NAMES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi", "phi3", "glm4", "gpt2"),
    *("opt", "bloom", "falcon", "starcoder2", "olmo2", "granite", "cohere", "stablelm", "gpt_oss"),
    *("llama4_text", "mamba"),
)


def base(root: Path, kind: str, values: dict[str, Any] | None = None, **spec: Any) -> StageConfig:
    """A job on a model of another architecture, whose base has random weights."""
    folder = root / "volumes" / "models" / kind
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **(values or {})}))
    spec = {"model": {"uri": f"pvc://models/{kind}", "attention": "eager"}, **spec}
    lora = {"method": {"lora": {"dropout": 0.0}}}
    config = make_config(
        root, "train", merged(lora, spec), choices=one_step(f"pvc://models/{kind}")
    )
    model.tiny(config).save_pretrained(folder)
    return config


def altered(config: StageConfig) -> Any:
    """The job's model after some training: every trained weight has moved."""
    network = trained.network(config, None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter.dtype))
    return network


def written(network: Any, folder: Path) -> Path:
    """Write a model as a checkpoint has it."""
    held = SimpleNamespace(model=network, model_wrapped=network, is_deepspeed_enabled=False)
    save.write_weights(held, folder, leads=True)
    return folder


def assert_equal(found: Any, wanted: Any) -> None:
    one, other = found.state_dict(), wanted.state_dict()
    assert one.keys() == other.keys()
    assert [name for name in one if one[name].dtype != other[name].dtype] == []
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("kind", [*OTHER_NAMES, *SAME_NAMES])
def test_every_architecture_comes_back_bit_by_bit(kind: str, tmp_path: Path) -> None:
    precision = "pureBf16" if kind in ("gpt_neox", "mixtral", "llama") else "bf16"
    config = base(tmp_path, kind, VALUES.get(kind), training={"precision": precision}, **FULL)
    base_weights.check(config)
    network = altered(config)
    folder = written(network, tmp_path / "checkpoint")
    names = load_file(folder / "model.safetensors").keys()
    part = OTHER_NAMES.get(kind)
    if part:
        assert any(part in name for name in names)
        assert not any(part in name for name in network.state_dict())
    else:
        assert names <= network.state_dict().keys()
    assert_equal(trained.network(config, folder), network)


def sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    real = transformers.PreTrainedModel.save_pretrained

    def small(self: Any, folder: Path, **values: Any) -> None:
        real(self, folder, **{"max_shard_size": "20KB", **values})

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", small)


def test_a_checkpoint_of_many_files_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = base(tmp_path, "qwen3_moe", **FULL)
    network = altered(config)
    sharded(monkeypatch)
    folder = written(network, tmp_path / "checkpoint")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    assert_equal(trained.network(config, folder), network)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    config = base(tmp_path, "llama", {"tie_word_embeddings": True}, **FULL)
    network = altered(config)
    folder = written(network, tmp_path / "checkpoint")
    found = trained.network(config, folder)
    assert_equal(found, network)
    assert found.lm_head.weight is found.model.embed_tokens.weight
    # Nothing holds the file, which is deleted while training goes on.
    assert str(folder) not in Path("/proc/self/maps").read_text()


def change(file: Path, name: str, to: str | None = None) -> None:
    """Remove a tensor of a file, or give it another name."""
    tensors = load_file(file)
    tensor = tensors.pop(name)
    if to:
        tensors[to] = tensor
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "name", "to", "said"),
    [
        ("llama", "model.norm.weight", None, "it has no model.norm.weight"),
        ("llama", "model.norm.weight", "model.norm.w", "it has no model.norm.weight"),
        ("gpt_neox", "embed_out.weight", None, "it has no lm_head.weight"),
        ("qwen3_moe", "model.layers.1.mlp.gate.weight", None, "no model.layers.1.mlp.gate.weight"),
        (
            "qwen3_moe",
            "model.layers.0.mlp.experts.3.down_proj.weight",
            None,
            "its model.layers.0.mlp.experts.down_proj is [3, 64, 32], and the model's [4, 64, 32]",
        ),
    ],
)
def test_a_missing_weight_ends_the_attempt(
    kind: str, name: str, to: str | None, said: str, tmp_path: Path
) -> None:
    config = base(tmp_path, kind, **FULL)
    folder = written(trained.network(config, None), tmp_path / "checkpoints" / "1" / "step-4")
    change(folder / "model.safetensors", name, to)
    with pytest.raises(StageError) as caught:
        trained.network(config, folder)
    assert caught.value.exit_code == 15
    problem = caught.value.problems[0]
    assert problem.code == "checkpoint-unusable"
    assert problem.message.startswith("checkpoints/1/step-4 does not restore the model: ")
    assert said in problem.message
    with pytest.raises(StageError) as caught:  # nor is it published
        merge.load_trained(config, folder, torch.float32)
    assert caught.value.problems[0] == problem


@pytest.mark.parametrize(
    ("kind", "name", "to", "said"),
    [
        ("llama", "model.norm.weight", None, "it has no model.norm.weight"),
        ("llama", "model.norm.weight", "norm.w", "it has no model.norm.weight"),
        ("gpt_neox", "embed_out.weight", None, "it has no lm_head.weight"),
        (
            "qwen3_moe",
            "model.layers.0.mlp.experts.3.down_proj.weight",
            None,
            "its model.layers.0.mlp.experts.down_proj is [3, 64, 32], and config.json makes it"
            " [4, 64, 32]",
        ),
    ],
)
def test_a_base_that_lacks_a_weight_is_refused_before_it_is_loaded(
    kind: str, name: str, to: str | None, said: str, tmp_path: Path
) -> None:
    config = base(tmp_path, kind)
    change(tmp_path / "volumes" / "models" / kind / "model.safetensors", name, to)
    with pytest.raises(StageError) as caught:
        base_weights.check(config)
    assert caught.value.exit_code == 16
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == ("model-weights-incomplete", "spec.model.uri")
    message = f"pvc://models/{kind} is not the model of its config.json: {said}"
    assert problem.message == message
    if said.startswith("it has no"):  # nor is one loaded whose code is its own
        with pytest.raises(StageError) as caught:
            model.load_model(config)
        assert caught.value.problems == (problem,)


def test_a_weight_that_the_model_has_no_place_for_ends_the_attempt(tmp_path: Path) -> None:
    config = base(tmp_path, "llama", **FULL)
    folder = written(trained.network(config, None), tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.7.more"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError) as caught:
        trained.network(config, folder)
    assert "the model has no model.layers.7.more" in caught.value.problems[0].message


LORAS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("qwen3_moe", {}, {"targetModules": ["q_proj", "v_proj"]}),
    "experts": (
        "qwen3_moe",
        {},
        {"targetModules": ["q_proj"], "targetParameters": ["mlp.experts.down_proj"]},
    ),
    "saved": ("gpt_neox", {}, {"targetModules": ["query_key_value"], "modulesToSave": ["lm_head"]}),
    "tied": (
        "llama",
        {"tie_word_embeddings": True},
        {"targetModules": ["q_proj"], "modulesToSave": ["embed_tokens"]},
    ),
    "tokens": ("llama", {}, {"targetModules": ["q_proj"], "trainableTokenIndices": [3, 5]}),
    "tied-tokens": (
        "llama",
        {"tie_word_embeddings": True},
        {"targetModules": ["q_proj"], "trainableTokenIndices": [3, 5]},
    ),
    "replicated": (
        "llama",
        {},
        {"targetModules": ["q_proj"], "layerReplication": [[0, 2], [0, 2]]},
    ),
    "bias": ("gpt_neox", {}, {"targetModules": ["query_key_value"], "bias": "all"}),
    "dora": ("llama", {}, {"targetModules": ["q_proj"], "useDora": True}),
}
ADAPTER = "adapter_model.safetensors"


def resumed(config: StageConfig, folder: Path) -> Any:
    """What a trainer has when transformers has loaded the checkpoint of an adapter."""
    trainer = object.__new__(trainer_class.of(transformers.Trainer))
    trainer.model = trained.network(config, folder)
    trainer.is_fsdp_enabled = False
    trainer._load_from_checkpoint(str(folder))
    return trainer.model


@pytest.mark.parametrize("shape", LORAS)
def test_an_adapter_comes_back_whole_or_not_at_all(shape: str, tmp_path: Path) -> None:
    kind, values, lora = LORAS[shape]
    config = base(tmp_path, kind, values, method={"lora": lora})
    network = altered(config)
    folder = written(network, tmp_path / "checkpoint")
    assert_equal(resumed(config, folder), network)
    merge.load_trained(config, folder, torch.float32)

    whole = load_file(folder / ADAPTER)
    parts = {name.rpartition("layers.")[2].lstrip("0123456789") for name in whole}
    for part in sorted(parts):  # one of each sort
        name = next(name for name in whole if name.endswith(part))
        change(folder / ADAPTER, name)
        with pytest.raises(StageError) as caught:
            resumed(config, folder)
        assert caught.value.exit_code == 15, name
        save_file(whole, folder / ADAPTER, metadata={"format": "pt"})


class Failing(torch.nn.Parameter):
    """A weight on a device that fails."""

    def copy_(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")


def copied_to_a_broken_device() -> RuntimeError:
    """What torch makes of a device that fails while a weight is copied to it."""
    module = torch.nn.Module()
    module.weight = Failing(torch.zeros(1))
    with pytest.raises(RuntimeError, match="loading state_dict") as caught:
        module.load_state_dict({"weight": torch.ones(1)})
    return caught.value


@pytest.mark.parametrize(
    "raised",
    [
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"),
        RuntimeError("unable to mmap 12 bytes from file </w/a>: Stale file handle (116)"),
        RuntimeError("Error opening file </w/a>: Input/output error (5)"),
        copied_to_a_broken_device(),
    ],
    ids=["accelerator", "busy", "stale", "input-output", "copied"],
)
def test_what_a_device_or_the_storage_does_is_no_fault_of_the_checkpoint(
    raised: RuntimeError, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError) as caught, trained.whole(tmp_path):
        raise raised
    assert caught.value is raised
    assert ending_of(raised).exit_code == 1


def test_an_engine_that_loads_an_adapter_may_leave_out_the_base_alone(tmp_path: Path) -> None:
    """DeepSpeed loads what it saved of an adapter without asking that it be whole."""
    config = base(tmp_path, "llama", method={"lora": {"targetModules": ["q_proj"]}})
    network = trained.network(config, tmp_path)
    state = {k: v for k, v in network.state_dict().items() if "lora_" in k}
    network.load_state_dict(state, strict=False)
    name = next(iter(state))
    with pytest.raises(StageError) as caught:
        network.load_state_dict({k: v for k, v in state.items() if k != name}, strict=False)
    assert f"it has no {name}" in caught.value.problems[0].message


def replace_model(root: Path, kind: str, values: dict[str, Any]) -> None:
    """Put a model of another architecture in the place of a prepared job's."""
    folder = root / "volumes" / "models" / "tiny"
    (folder / "model.safetensors").unlink()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **values)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "values", "precision"),
    [("gpt_neox", SMALL, "fp32"), ("qwen3_moe", EXPERTS, "pureBf16")],
)
def test_a_resumed_run_goes_on_with_the_weights_that_it_saved(
    kind: str, values: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    """Of a run that saved at step 4 and at its end, 6, the end is taken away and made again."""
    spec = {
        **FULL,
        "model": {"attention": "eager"},
        "training": {"learningRate": 5e-3, "precision": precision},
        "checkpoint": {"everySteps": 4},
    }
    config = prepared_job(tmp_path, spec, micro_batch=8, packing=False)
    replace_model(tmp_path, kind, values)
    layout = Layout(Path(config.mounts.workspace))
    assert train_here(config, tmp_path / "scratch").code == 0
    losses, end = metric(config, "loss"), load_file(layout.checkpoint(1, 6) / "model.safetensors")
    shutil.rmtree(layout.checkpoint(1, 6))

    assert train_here(with_attempt(config, 2, 1, 8), tmp_path / "again").code == 0
    again = load_file(layout.checkpoint(2, 6) / "model.safetensors")
    assert again.keys() == end.keys()
    assert [name for name in end if not torch.equal(end[name], again[name])] == []
    assert metric(config, "loss") == losses
    verify.verified(layout.checkpoint(1, 4), config.job.uid)  # training did not write into it


@pytest.mark.parametrize("kind", ["gpt_neox", "qwen3_moe", "mixtral"])
def test_a_model_with_other_names_in_its_files_is_published(kind: str, tmp_path: Path) -> None:
    config = base(tmp_path, kind, **FULL)
    folder = written(altered(config), tmp_path / "checkpoint")
    network = merge.load_trained(config, folder, torch.float32)
    merge.save(network, tmp_path / "output", torch.float32, [1])
    assert load_file(tmp_path / "output" / "model.safetensors").keys() == (
        load_file(folder / "model.safetensors").keys()
    )
