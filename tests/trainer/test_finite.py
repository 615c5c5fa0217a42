"""Losses and gradients that are no numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from finetune_trainer import train
from finetune_trainer.callbacks.finite import Finite
from finetune_trainer.errors import StageError

LOSS = torch.tensor(2.5)


def test_fp16_that_no_scale_helps_ends_with_13() -> None:
    finite = Finite(gradients=False)
    for step in range(1, 20):
        finite.look(step, LOSS, torch.tensor(math.inf))
    with pytest.raises(StageError) as caught:
        finite.look(20, LOSS, torch.tensor(math.nan))
    assert caught.value.exit_code == 13
    problem = caught.value.problems[0]
    assert (problem.code, problem.field) == ("non-finite-gradients", "spec.training.precision")


def test_a_loss_scaler_that_finds_its_scale_goes_on() -> None:
    finite = Finite(gradients=False)
    for step in range(1, 200):
        finite.look(step, LOSS, 0.5 if step % 20 == 0 else math.inf)
    finite.look(200, LOSS, None)
    finite.end(200)


def test_a_short_run_in_fp16_in_which_no_step_counted_ends_with_13() -> None:
    finite = Finite(gradients=False)
    for step in range(1, 7):
        finite.look(step, LOSS, math.inf)
    with pytest.raises(StageError) as caught:
        finite.end(6)
    assert caught.value.exit_code == 13
    assert caught.value.problems[0].code == "non-finite-gradients"
    assert caught.value.problems[0].message == (
        "gradients in fp16 were not finite in any of 6 steps: no weight has moved in them"
    )


def test_such_a_run_is_neither_evaluated_nor_saved() -> None:
    finite, signals = Finite(gradients=False), SimpleNamespace(stopping=False)
    finite.look(1, LOSS, math.inf)
    state = SimpleNamespace(global_step=1)
    trainer = SimpleNamespace(
        state=state, parts=SimpleNamespace(finite=finite, signals=signals, evaluation=None)
    )
    with pytest.raises(StageError):
        train.finish(trainer)


def test_a_run_that_was_asked_to_stop_is_saved_and_goes_on_later() -> None:
    saved: list[object] = []
    signals = SimpleNamespace(stopping=True, save=lambda _, reason: saved.append(reason))
    finite = Finite(gradients=False)
    finite.look(1, LOSS, math.inf)
    parts = SimpleNamespace(finite=finite, signals=signals, evaluation=None)
    train.finish(SimpleNamespace(state=SimpleNamespace(global_step=1), parts=parts))
    assert saved == [None]


@pytest.mark.parametrize(
    ("first", "norms"),
    [
        (1, [math.inf, math.inf, 0.5]),
        (1, [0.5, math.inf, math.inf]),
        (10, [math.inf, math.inf]),  # of an attempt that goes on from step 9
        (10, []),
    ],
)
def test_a_run_in_which_a_step_counted_ends_well(first: int, norms: list[float]) -> None:
    finite = Finite(gradients=False)
    for step, norm in enumerate(norms, first):
        finite.look(step, LOSS, norm)
    finite.end(first + len(norms) - 1)


def test_a_run_without_a_step_ends_well() -> None:
    Finite(gradients=False).end(0)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_loss_that_is_no_number_ends_at_once(gradients: bool) -> None:
    with pytest.raises(StageError) as caught:
        Finite(gradients=gradients).look(3, torch.tensor(math.nan), 1.0)
    assert caught.value.problems[0].message == "the loss is nan at step 3; nothing of it was saved"


def test_without_a_scaler_one_infinite_gradient_is_enough() -> None:
    with pytest.raises(StageError) as caught:
        Finite(gradients=True).look(3, LOSS, math.inf)
    assert caught.value.problems[0].code == "non-finite-loss"
