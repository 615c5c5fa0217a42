"""Schedules of the learning rate, as the library runs them."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from transformers import get_scheduler

from finetune_api.job.training import Training
from finetune_trainer.optimizers import schedule

RATE = {"learningRate": 1e-3, "precision": "fp32", "gradientCheckpointing": False}


@pytest.mark.parametrize(
    "training",
    [
        {"lrScheduler": name} | ({} if floor is None else {"minLearningRate": floor})
        for name in get_args(Training.model_fields["lr_scheduler"].annotation)
        for floor in (None, 1e-4, 1e-3)
        if floor is None or name in ("cosine", "polynomial", "warmup_stable_decay")
        if name != "cosine_with_min_lr"
    ]
    + [{"lrScheduler": "cosine_with_min_lr", "minLearningRate": 1e-4}],
    ids=lambda training: "-".join(map(str, training.values())),
)
def test_every_schedule_runs_to_the_end_of_the_training(training: dict[str, Any]) -> None:
    """The library takes one step of the schedule more than there are steps; 1e-3 is the full rate."""
    for total in (1, 2, 100):
        warm_ups = [{}, {"warmupRatio": 1.0}, {"warmupSteps": 0}, {"warmupSteps": total - 1}]
        for warm_up in warm_ups:
            plan = schedule(Training.model_validate({**RATE, **training, **warm_up}), total)
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
            scheduler = get_scheduler(
                plan.name,
                optimizer,
                num_warmup_steps=plan.warmup_steps,
                num_training_steps=total,
                scheduler_specific_kwargs=plan.arguments,
            )
            rates = []
            for _ in range(total):
                rates.append(scheduler.get_last_lr()[0])
                optimizer.step()
                scheduler.step()
            assert max(rates) == pytest.approx(1e-3), (total, warm_up)
