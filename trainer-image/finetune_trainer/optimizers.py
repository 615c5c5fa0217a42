"""Optimizers and learning-rate schedules: our names, and what transformers calls them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.job.training import Training
from finetune_api.problem import Problem
from finetune_trainer.errors import StageError

WARMUP_RATIO = 0.03
"""Of all steps, where the job names no warm-up."""
DECAY_RATIO = 0.1
"""Of all steps: the last stretch of warmup_stable_decay (arXiv:2404.06395, section 4.2)."""
OPTIMIZERS = frozenset({"adamw_torch", "adamw_torch_fused", "adafactor", "sgd"})


@dataclass(frozen=True)
class Schedule:
    """A schedule in the library's words."""

    name: str
    warmup_steps: int
    arguments: dict[str, Any]


def optimizer_name(training: Training) -> str:
    """Return the library's name of the optimizer; raises ``StageError`` (10) for one without."""
    if training.optimizer in OPTIMIZERS:
        return training.optimizer
    raise StageError(
        ExitCode.INVALID_CONFIG,
        Problem(
            code="not-supported-yet",
            message=f"optimizer {training.optimizer} is not supported yet",
            fix=f"use one of {', '.join(sorted(OPTIMIZERS))}",
            field="spec.training.optimizer",
        ),
    )


def warmup_steps(training: Training, total_steps: int) -> int:
    """Return the steps over which the learning rate rises from 0; the last is at the full rate.

    Raises:
        StageError: ``warmupSteps`` leaves no step for that (10).
    """
    named = training.warmup_steps
    if named is None:
        ratio = WARMUP_RATIO if training.warmup_ratio is None else training.warmup_ratio
        return min(math.ceil(ratio * total_steps), total_steps - 1)
    if named < total_steps:
        return named
    raise StageError(
        ExitCode.INVALID_CONFIG,
        Problem(
            code="warmup-too-long",
            message=f"the warm-up takes {named:,} steps, and training has {total_steps:,}: no step "
            "would be at the learning rate",
            fix=f"set warmupSteps to less than {total_steps}, or use warmupRatio",
            field="spec.training.warmupSteps",
        ),
    )


def schedule(training: Training, total_steps: int) -> Schedule:
    """Return the schedule over ``total_steps`` optimizer steps.

    Raises:
        StageError: ``minLearningRate`` with a schedule that has no floor, or a warm-up that does not
            end before the training (10).
    """
    name: str = training.lr_scheduler
    floor = training.min_learning_rate
    warmup = warmup_steps(training, total_steps)
    arguments: dict[str, Any] = {}
    if name == "cosine" and floor is not None:
        name, arguments = "cosine_with_min_lr", {"min_lr": floor}
    elif name == "cosine_with_min_lr":
        arguments = {"min_lr": floor or 0.0}
    elif name == "polynomial" and floor == training.learning_rate:
        name = "constant_with_warmup"  # that is what it falls to; the library refuses it
    elif name == "polynomial":
        arguments = {"lr_end": floor or 0.0}
    elif name == "warmup_stable_decay":
        arguments = {
            "num_decay_steps": min(math.ceil(DECAY_RATIO * total_steps), total_steps - warmup),
            "min_lr_ratio": (floor or 0.0) / training.learning_rate,
        }
    elif floor is not None:
        raise StageError(
            ExitCode.INVALID_CONFIG,
            Problem(
                code="schedule-without-floor",
                message=f"lrScheduler {name} has no lowest rate, and minLearningRate is {floor:g}",
                fix="use lrScheduler cosine, polynomial or warmup_stable_decay, or leave "
                "minLearningRate out",
                field="spec.training.minLearningRate",
            ),
        )
    return Schedule(name, warmup, arguments)


def count_on_host(optimizer: Any) -> None:
    """Put an optimizer's counts of steps where torch makes them, after a resume.

    With several ranks transformers loads the optimizer's state onto the GPU, the counts too. Adam
    reads each on the host, so every parameter would make it wait for the GPU at every step. What
    ``fused`` and ``capturable`` read is on the GPU from the beginning.
    """
    for group in optimizer.param_groups:
        if group.get("fused") or group.get("capturable"):
            continue
        for parameter in group["params"]:
            count = optimizer.state.get(parameter, {}).get("step")
            if hasattr(count, "cpu"):
                optimizer.state[parameter]["step"] = count.cpu()
