"""Saves come as often as maxLostWork asks for and as seldom as maxOverhead demands."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.job.lifecycle import Checkpoint
from finetune_trainer.callbacks.cadence import Cadence, pause


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("save", "step", "lost", "overhead", "seconds"),
    [
        (0.0, 0.0, 600.0, 0.05, 600.0),
        (0.0, 2.0, 600.0, 0.05, 598.0),  # a step before it would be too late
        (10.0, 2.0, 600.0, 0.05, 588.0),  # done when 600 s are unsaved
        (60.0, 2.0, 600.0, 0.05, 1140.0),  # 60 of 1200 s is 5 %: the overhead wins
        (1.0, 2.0, 600.0, 0.5, 597.0),
        (5.0, 900.0, 600.0, 0.05, 95.0),  # a step longer than what may be lost
        (1.0, 1.0, 600.0, 0.0, float("inf")),
        (600.0, 1.0, 600.0, 1.0, 0.0),
    ],
)
def test_the_pause_between_saves(save, step, lost, overhead, seconds) -> None:
    assert pause(save, step, lost, overhead) == pytest.approx(seconds)


def run(
    spec: Checkpoint, *, steps: int, step_seconds: float, save_seconds: float
) -> tuple[list[int], float]:
    """The steps that are saved, and the part of the time that saving took."""
    clock = Clock()
    cadence = Cadence(spec, clock=clock)
    saved: list[int] = []
    for step in range(1, steps + 1):
        clock.now += step_seconds
        cadence.step_ended(step)
        if cadence.due():
            clock.now += save_seconds
            saved.append(step)
            cadence.saved(step, save_seconds)
    return saved, len(saved) * save_seconds / (clock.now - 1000.0)


def test_no_more_than_max_lost_work_is_unsaved() -> None:
    spec = Checkpoint(max_lost_work="10m", max_overhead=0.05)
    saved, _ = run(spec, steps=1500, step_seconds=2.0, save_seconds=4.0)
    # The first comes with its cost unknown, after 598 s = step 299; then 600 - 2 - 4 = 594 s.
    assert saved == [299, 596, 893, 1190, 1487]


def test_the_overhead_wins() -> None:
    spec = Checkpoint(max_lost_work="1m", max_overhead=0.05)
    saved, overhead = run(spec, steps=1000, step_seconds=10.0, save_seconds=60.0)
    # 60 s a save: 1140 s of work between two; the first one came after 50 s.
    assert saved == [5, 119, 233, 347, 461, 575, 689, 803, 917]
    assert overhead <= 0.055


def test_a_fixed_cadence_asks_no_clock() -> None:
    spec = Checkpoint(every_steps=4, max_lost_work="1s", max_overhead=0.0)
    saved, _ = run(spec, steps=13, step_seconds=100.0, save_seconds=900.0)
    assert saved == [4, 8, 12]


def test_a_fixed_cadence_counts_from_the_step_that_was_saved() -> None:
    cadence = Cadence(Checkpoint(every_steps=4), step=6, clock=Clock())
    due = []
    for step in range(7, 14):
        cadence.step_ended(step)
        due.append(cadence.due())
    assert due == [False, False, False, True, True, True, True]


def test_a_step_is_never_saved_twice() -> None:
    clock = Clock()
    cadence = Cadence(Checkpoint(max_lost_work="1s"), clock=clock)
    assert not cadence.due()
    clock.now += 100
    assert not cadence.due()  # no step has ended
    cadence.step_ended(1)
    assert cadence.due()
    cadence.saved(1, 0.0)
    clock.now += 100
    assert not cadence.due()


def test_by_the_clock_it_asks_once_for_each_save() -> None:
    clock = Clock()
    cadence = Cadence(Checkpoint(max_lost_work="10s"), clock=clock)
    clock.now += 20
    cadence.step_ended(1)
    assert [cadence.due(), cadence.due()] == [True, False]
    clock.now += 20
    cadence.step_ended(2)
    assert not cadence.due()
    cadence.saved(2, 0.0)
    clock.now += 20
    cadence.step_ended(3)
    assert [cadence.due(), cadence.due()] == [True, False]


def test_loading_is_no_work_that_could_be_lost() -> None:
    clock = Clock()
    cadence = Cadence(Checkpoint(max_lost_work="60s"), clock=clock)
    clock.now += 300
    cadence.begin()
    clock.now += 2
    cadence.step_ended(1)
    assert not cadence.due()


@given(
    lost=st.integers(1, 3600),
    overhead=st.floats(0.01, 0.9),
    step=st.floats(0.01, 100),
    save=st.floats(0.0, 300),
)
def test_both_promises_hold_for_any_times(lost, overhead, step, save) -> None:
    spec = Checkpoint(max_lost_work=f"{lost}s", max_overhead=overhead)
    saved, _ = run(spec, steps=400, step_seconds=step, save_seconds=save)
    for before, after in itertools.pairwise(saved):
        work = (after - before) * step
        assert save / (work + save) <= overhead + 1e-6
        allowed_by_overhead = save * (1 - overhead) / overhead
        assert work <= max(lost, allowed_by_overhead + step, step) + 1e-6
