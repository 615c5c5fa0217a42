from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.order import GlobalBatches, epoch_order, step_digest


def batches(rank: int, world_size: int, micro_batch: int, **over: object) -> GlobalBatches:
    values = {"samples": 37, "seed": 42, "global_batch": 8, **over}
    return GlobalBatches(
        micro_batch=micro_batch,
        rank=rank,
        world_size=world_size,
        **values,  # type: ignore[arg-type]
    )


def steps(world_size: int, micro_batch: int, epoch: int = 0) -> list[list[int]]:
    """The sorted sample ids of each optimizer step, over all ranks."""
    ranks = [batches(rank, world_size, micro_batch) for rank in range(world_size)]
    for rank in ranks:
        rank.set_epoch(epoch)
    accumulation = ranks[0].accumulation
    parts = [list(rank) for rank in ranks]
    return [
        sorted(
            sample
            for part in parts
            for micro in part[step * accumulation : (step + 1) * accumulation]
            for sample in micro
        )
        for step in range(ranks[0].steps)
    ]


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 1), (1, 8), (2, 2), (4, 1), (8, 1)])
def test_a_step_consumes_the_same_samples_at_any_world_size(
    world_size: int, micro_batch: int
) -> None:
    assert steps(world_size, micro_batch) == steps(2, 4)
    assert steps(world_size, micro_batch, epoch=3) == steps(2, 4, epoch=3)


def test_only_complete_global_batches_and_no_sample_twice() -> None:
    seen = [sample for step in steps(2, 2) for sample in step]
    assert len(seen) == 32
    assert len(set(seen)) == 32
    assert batches(0, 2, 2).steps == 4
    assert len(batches(0, 2, 2)) == 8
    assert len(list(batches(0, 2, 2))) == 8


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first = list(batches(0, 1, 8))
    again = batches(0, 1, 8)
    again.set_epoch(1)
    assert list(again) != first
    again.set_epoch(0)
    assert list(again) == first
    assert list(batches(0, 1, 8, seed=43)) != first


def test_the_order_is_fixed_for_ever() -> None:
    assert epoch_order(8, 42, 0).tolist() == [3, 4, 2, 7, 6, 1, 5, 0]


def test_sequential_keeps_the_order_of_the_data() -> None:
    parts = batches(1, 2, 2, sampling="Sequential")
    assert list(parts)[:2] == [[2, 3], [6, 7]]


def test_rows_of_like_length_come_together() -> None:
    lengths = np.array([1, 9, 2, 8, 3, 7, 4, 6], dtype=np.int64)
    order = epoch_order(8, 0, 0, sampling="GroupByLength", global_batch=2, lengths=lengths)
    assert lengths[order].tolist() == [9, 8, 7, 6, 4, 3, 2, 1]


@given(st.integers(0, 200), st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_every_sample_once_an_epoch(samples: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_order(samples, seed, epoch).tolist()) == list(range(samples))


def test_a_step_s_digest_is_that_of_its_sorted_ids() -> None:
    assert step_digest([10, 9]) == hashlib.sha256(b"9,10").hexdigest()
    assert step_digest([1, 2]) == step_digest([2, 1]) != step_digest([12])
