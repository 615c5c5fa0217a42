"""Losses and gradients that are no numbers."""

from __future__ import annotations

import math

import pytest
import torch

from finetune_trainer.callbacks.finite import Finite
from finetune_trainer.errors import StageError

LOSS = torch.tensor(2.5)


def test_fp16_that_no_scale_helps_ends_with_13() -> None:
    finite = Finite(gradients=False)
    for step in range(1, 50):
        finite.look(step, LOSS, torch.tensor(math.inf))
    with pytest.raises(StageError) as caught:
        finite.look(50, LOSS, torch.tensor(math.nan))
    assert caught.value.exit_code == 13
    problem = caught.value.problems[0]
    assert (problem.code, problem.field) == ("non-finite-gradients", "spec.training.precision")


def test_a_loss_scaler_that_finds_its_scale_goes_on() -> None:
    finite = Finite(gradients=False)
    for step in range(1, 200):
        finite.look(step, LOSS, 0.5 if step % 40 == 0 else math.inf)
    finite.look(200, LOSS, None)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_loss_that_is_no_number_ends_at_once(gradients: bool) -> None:
    with pytest.raises(StageError) as caught:
        Finite(gradients=gradients).look(3, torch.tensor(math.nan), 1.0)
    assert caught.value.problems[0].message == "the loss is nan at step 3; nothing of it was saved"


def test_without_a_scaler_one_infinite_gradient_is_enough() -> None:
    with pytest.raises(StageError) as caught:
        Finite(gradients=True).look(3, LOSS, math.inf)
    assert caught.value.problems[0].code == "non-finite-loss"
