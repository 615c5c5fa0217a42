"""What a short job is completed with, by values worked out by hand."""

from __future__ import annotations

import copy

import pytest

from finetune_api.resolved import Chosen
from finetune_operator.resolve import resolve
from harness.resolving import chosen, job, profile


def test_the_shortest_job_is_completed() -> None:
    resolved = resolve(job(uid="1234", namespace="team-a"))
    assert (resolved.name, resolved.namespace, resolved.uid) == ("bot", "team-a", "1234")
    assert resolved.chosen == (
        Chosen(field="objective.sft", value="{}", reason="the usual objective"),
        Chosen(
            field="training.learningRate", value="2e-4", reason="the usual value for sft with lora"
        ),
        Chosen(
            field="training.precision", value="bf16", reason="the ranks compute on accelerators"
        ),
        Chosen(
            field="training.gradientCheckpointing",
            value="true",
            reason="memory of accelerators is the limit",
        ),
        Chosen(field="resources.processesPerNode", value="1", reason="one rank an accelerator"),
        Chosen(field="parallelism.ddp", value="{}", reason="one rank has nothing to divide"),
    )
    assert resolved.origins == {
        "dataset.train": "user",
        "method.lora": "user",
        "model.uri": "user",
        "objective.sft": "built-in",
        "parallelism.ddp": "built-in",
        "resources.processesPerNode": "built-in",
        "training.gradientCheckpointing": "built-in",
        "training.learningRate": "built-in",
        "training.precision": "built-in",
    }


@pytest.mark.parametrize(("method", "rate"), [("full", 1e-5), ("lora", 2e-4)])
def test_the_learning_rate_follows_the_method(method: str, rate: float) -> None:
    assert resolve(job({"method": {method: {}}})).spec.training.learning_rate == rate


def test_the_table_of_learning_rates() -> None:
    from finetune_operator.resolve.builtin import LEARNING_RATE

    table = {
        (method, objective): LEARNING_RATE[method][objective]
        for method in ("full", "lora", "houlsby", "prefixTuning", "promptTuning", "pTuning")
        for objective in ("sft", "dpo", "kto")
    }
    assert table == {
        ("full", "sft"): 0.00001,
        ("full", "dpo"): 0.0000005,
        ("full", "kto"): 0.0000005,
        ("lora", "sft"): 0.0002,
        ("lora", "dpo"): 0.000005,
        ("lora", "kto"): 0.000005,
        ("houlsby", "sft"): 0.0001,
        ("houlsby", "dpo"): 0.000005,
        ("houlsby", "kto"): 0.000005,
        ("prefixTuning", "sft"): 0.01,
        ("prefixTuning", "dpo"): 0.01,
        ("prefixTuning", "kto"): 0.01,
        ("promptTuning", "sft"): 0.01,
        ("promptTuning", "dpo"): 0.01,
        ("promptTuning", "kto"): 0.01,
        ("pTuning", "sft"): 0.01,
        ("pTuning", "dpo"): 0.01,
        ("pTuning", "kto"): 0.01,
    }
    objectives = {"sft", "pretrain", "dpo", "kto", "orpo", "reward", "supervised"}
    assert all(row.keys() == objectives for row in LEARNING_RATE.values())


def test_on_a_cpu() -> None:
    spec = {"resources": {"nodes": 2, "accelerator": {"device": "cpu", "perNode": 4}}}
    resolved = resolve(job(spec))
    assert resolved.spec.training.precision == "fp32"
    assert resolved.spec.training.gradient_checkpointing is False
    assert resolved.spec.resources.processes_per_node == 1
    assert resolved.spec.resources.world_size == 2


def test_full_fine_tuning_on_several_ranks_is_divided() -> None:
    spec = {"method": {"full": {}}, "resources": {"nodes": 2, "accelerator": {"perNode": 8}}}
    resolved = resolve(job(spec))
    assert resolved.spec.resources.processes_per_node == 8
    assert resolved.spec.parallelism.to_json() == {
        "deepspeed": {"zeroStage": 2},
        "tensorParallelSize": 1,
        "pipelineParallelSize": 1,
        "sequenceParallelSize": 1,
    }
    assert chosen(resolved)["parallelism.deepspeed"] == (
        "{zeroStage: 2}",
        "optimizer state and gradients are divided over 16 ranks",
    )


def test_16_bit_training_on_several_ranks_is_not_divided() -> None:
    spec = {
        "method": {"full": {}},
        "training": {"precision": "pureBf16"},
        "resources": {"accelerator": {"perNode": 8}},
    }
    resolved = resolve(job(spec))
    assert resolved.spec.parallelism.engine == "ddp"
    assert chosen(resolved)["parallelism.ddp"] == (
        "{}",
        "DeepSpeed would keep fp32 weights beside those of pureBf16",
    )


def test_an_adapter_on_several_ranks_is_not_divided() -> None:
    resolved = resolve(job({"resources": {"accelerator": {"perNode": 8}}}))
    assert resolved.spec.parallelism.engine == "ddp"
    assert resolved.spec.parallelism.ddp is not None


def test_what_the_user_wrote_is_not_chosen() -> None:
    spec = {
        "objective": {"sft": {}},
        "training": {"learningRate": 1e-3, "precision": "fp32", "gradientCheckpointing": False},
        "parallelism": {"deepspeed": {"zeroStage": 3}},
        "resources": {"processesPerNode": 1},
    }
    resolved = resolve(job(spec))
    assert resolved.chosen == ()
    assert resolved.spec.training.learning_rate == 0.001
    assert resolved.spec.parallelism.deepspeed is not None
    assert resolved.spec.parallelism.deepspeed.zero_stage == 3


def test_neither_input_is_changed() -> None:
    user, preset = job(), profile({"defaults": {"training": {"seed": 7}}})
    before = copy.deepcopy((user, preset))
    resolve(user, [preset])
    assert (user, preset) == before
