from __future__ import annotations

from typing import Any

import pytest

from finetune_api.job import JobSpec
from finetune_trainer.arguments import accumulation
from finetune_trainer.errors import StageError
from finetune_trainer.optimizers import Schedule, optimizer_name, schedule
from finetune_trainer.parallelism import deepspeed_config
from harness.stage_config import SPEC, merged


def spec(**over: Any) -> JobSpec:
    return JobSpec.model_validate(merged(SPEC, over))


@pytest.mark.parametrize(("world", "micro", "expected"), [(1, 1, 64), (8, 8, 1), (16, 2, 2)])
def test_accumulation_follows_from_the_world(world: int, micro: int, expected: int) -> None:
    assert accumulation(64, world, micro) == expected


def test_a_world_that_does_not_divide_the_global_batch_is_refused() -> None:
    with pytest.raises(StageError) as caught:
        accumulation(64, 3, 8)
    assert caught.value.exit_code == 10
    problem = caught.value.problems[0]
    assert problem.code == "global-batch-not-divisible"
    assert problem.message == (
        "globalBatchSize 64 cannot be divided by 3 ranks x microBatchSize 8 = 24"
    )
    assert problem.fix == "set globalBatchSize to 48 or 72, or change the number of ranks"
    with pytest.raises(StageError, match="4 ranks x microBatchSize 2 = 8"):
        accumulation(4, 4, 2)


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, Schedule("cosine", 3, {})),
        ({"minLearningRate": 1e-5}, Schedule("cosine_with_min_lr", 3, {"min_lr": 1e-5})),
        ({"lrScheduler": "linear", "warmupSteps": 7}, Schedule("linear", 7, {})),
        ({"warmupRatio": 0.0}, Schedule("cosine", 0, {})),
        ({"warmupRatio": 0.1}, Schedule("cosine", 10, {})),
        ({"lrScheduler": "polynomial"}, Schedule("polynomial", 3, {"lr_end": 0.0})),
        (
            {"lrScheduler": "warmup_stable_decay", "minLearningRate": 1e-4},
            Schedule("warmup_stable_decay", 3, {"num_decay_steps": 10, "min_lr_ratio": 0.1}),
        ),
    ],
)
def test_schedules(training: dict[str, Any], expected: Schedule) -> None:
    assert schedule(spec(training=training).training, 100) == expected


@pytest.mark.parametrize(
    ("training", "total", "expected"),
    [
        ({}, 1, Schedule("cosine", 0, {})),
        ({}, 2, Schedule("cosine", 1, {})),
        ({"warmupRatio": 1.0}, 10, Schedule("cosine", 9, {})),
        ({"warmupSteps": 9}, 10, Schedule("cosine", 9, {})),
        (
            {"lrScheduler": "polynomial", "learningRate": 1e-3, "minLearningRate": 1e-3},
            100,
            Schedule("constant_with_warmup", 3, {}),
        ),
        (
            {"lrScheduler": "warmup_stable_decay", "warmupRatio": 0.95},
            100,
            Schedule("warmup_stable_decay", 95, {"num_decay_steps": 5, "min_lr_ratio": 0.0}),
        ),
    ],
)
def test_schedules_at_their_edges(training: dict[str, Any], total: int, expected: Schedule) -> None:
    assert schedule(spec(training=training).training, total) == expected


@pytest.mark.parametrize(("steps", "total"), [(100, 100), (100_000, 100), (1, 1)])
def test_a_warm_up_without_a_step_at_the_full_rate_is_refused(steps: int, total: int) -> None:
    with pytest.raises(StageError) as caught:
        schedule(spec(training={"warmupSteps": steps}).training, total)
    assert caught.value.exit_code == 10
    assert caught.value.problems[0].code == "warmup-too-long"


def test_a_floor_without_a_schedule_that_has_one_is_refused() -> None:
    with pytest.raises(StageError) as caught:
        schedule(spec(training={"lrScheduler": "linear", "minLearningRate": 1e-5}).training, 100)
    assert caught.value.problems[0].code == "schedule-without-floor"


def test_an_optimizer_that_is_not_there_yet_is_refused() -> None:
    assert optimizer_name(spec().training) == "adamw_torch"
    with pytest.raises(StageError) as caught:
        optimizer_name(spec(training={"optimizer": "lamb"}).training)
    assert caught.value.exit_code == 10


def test_deepspeed_s_configuration() -> None:
    assert deepspeed_config(spec()) is None
    three = spec(
        parallelism={"ddp": None, "deepspeed": {"zeroStage": 3}}, training={"precision": "bf16"}
    )
    config = deepspeed_config(three)
    assert config is not None
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert config["zero_optimization"]["overlap_comm"] is False
    assert config["bf16"] == {"enabled": True}
    assert "optimizer" not in config
    offload = spec(parallelism={"ddp": None, "deepspeed": {"offloadOptimizer": "cpu"}})
    config = deepspeed_config(offload)
    assert config is not None
    assert config["zero_optimization"]["offload_optimizer"] == {
        "device": "cpu",
        "pin_memory": False,
    }
