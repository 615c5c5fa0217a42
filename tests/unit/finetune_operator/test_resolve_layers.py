"""What a user wrote, what a profile presets and what is built in, laid over each other."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.resolve import resolve
from harness.resolving import MINIMAL, chosen, job, profile, refused


def test_three_layers() -> None:
    defaults = {
        "training": {"seed": 7, "epochs": 1, "learningRate": 1e-3},
        "resources": {"nodeSelector": {"pool": "a", "nvidia.com/gpu.product": "A100"}},
    }
    user = {
        "training": {"epochs": 2},
        "resources": {"nodeSelector": {"nvidia.com/gpu.product": "H100"}},
    }
    resolved = resolve(job(user), [profile({"defaults": defaults})])
    training = resolved.spec.training
    assert (training.seed, training.epochs, training.learning_rate) == (7, 2, 0.001)
    assert training.weight_decay == 0.0
    assert resolved.spec.resources.node_selector == {
        "pool": "a",
        "nvidia.com/gpu.product": "H100",
    }
    origins = resolved.origins
    assert origins["training.seed"] == "profile"
    assert origins["training.epochs"] == "user"
    assert origins["training.learningRate"] == "profile"
    assert origins["training.precision"] == "built-in"
    assert origins["resources.nodeSelector.pool"] == "profile"
    assert origins["resources.nodeSelector[nvidia.com/gpu.product]"] == "user"
    assert "training.weightDecay" not in origins
    assert chosen(resolved)["profileRef.name"] == ("shared", "the default profile of the cluster")


@pytest.mark.parametrize(
    ("section", "preset", "user", "merged"),
    [
        ("method", {"lora": {"r": 64}}, {"full": {}}, {"full": {}}),
        ("parallelism", {"ddp": {}}, {"deepspeed": {"zeroStage": 3}}, {"zeroStage": 3}),
        ("training", {"warmupRatio": 0.1}, {"warmupSteps": 5}, None),
        ("workspace", {"size": "1Ti", "storageClassName": "x"}, {"claimName": "mine"}, None),
    ],
)
def test_a_choice_replaces_the_choice_below(
    section: str, preset: Any, user: Any, merged: Any
) -> None:
    resolved = resolve(job({section: user}), [profile({"defaults": {section: preset}})])
    found = resolved.spec.to_json()[section]
    for name in preset:
        assert name not in found
    for name, value in user.items():
        assert found[name] == (merged if name == "deepspeed" else value)
    assert not [path for path, origin in resolved.origins.items() if origin == "profile"]


def test_the_same_choice_keeps_the_profiles_values() -> None:
    preset = {"method": {"lora": {"r": 64, "alpha": 128}}}
    resolved = resolve(job({"method": {"lora": {"alpha": 8}}}), [profile({"defaults": preset})])
    lora = resolved.spec.method.lora
    assert lora is not None
    assert (lora.r, lora.alpha) == (64, 8)
    assert resolved.origins["method.lora.r"] == "profile"
    assert resolved.origins["method.lora.alpha"] == "user"


def test_validation_rows_of_the_user_replace_the_fraction_of_the_profile() -> None:
    dataset = {**MINIMAL["dataset"], "validation": {"sources": [{"uri": "pvc://datasets/v.jsonl"}]}}
    preset = {"dataset": {"validation": {"fraction": 0.1}}}
    resolved = resolve(job({"dataset": dataset}), [profile({"defaults": preset})])
    assert resolved.spec.dataset.validation is not None
    assert resolved.spec.dataset.validation.fraction is None


def test_a_value_of_the_profile_that_is_wrong_is_said_to_be_the_profiles() -> None:
    preset = {"training": {"globalBatchSize": 10, "microBatchSize": 4}}
    assert refused(job(), [profile({"defaults": preset})]) == [
        (
            "spec.training.microBatchSize",
            "micro-batch-divides",
            "globalBatchSize 10 cannot be divided by 4 (1 rank x microBatchSize 4) "
            "(from the defaults of profile shared)",
            "set microBatchSize to 2, or globalBatchSize to 8 or 12",
        )
    ]


def test_the_image_is_the_profiles_unless_one_is_given() -> None:
    image = "registry.example/trainer@sha256:" + "0" * 64
    preset = [profile({"platform": {"images": {"trainer": image}}})]
    assert resolve(job(), preset).trainer_image == image
    assert resolve(job(), preset, trainer_image="other").trainer_image == "other"
    assert resolve(job()).trainer_image == ""
