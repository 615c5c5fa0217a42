"""Packing, splits, spans and batch arithmetic: literals, and properties of every input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.problem import Refused
from finetune_trainer.data import batch
from finetune_trainer.data.encode import Document, cut
from finetune_trainer.data.mask import token_spans
from finetune_trainer.data.pack import alone, in_order, pack
from finetune_trainer.data.split import copies, held_out, validation_rows


def bins_of(bins) -> list[list[int]]:
    return [part.tolist() for part in np.split(bins.members, bins.ends[:-1])] if len(bins) else []


def naive_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The textbook algorithm: remaining space of each bin, sorted."""
    left: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in left if space >= length]
        if fitting:
            left.remove(min(fitting))
            left.append(min(fitting) - length)
        else:
            left.append(capacity - length)
    return sorted(left)


def test_a_small_case_by_hand():
    # capacity 10: 7+3, 6+4, 5+5, 2 alone
    bins = pack(np.array([7, 2, 6, 5, 3, 5, 4]), 10, seed=1)
    assert sorted(sorted(part) for part in bins_of(bins)) == [[0, 4], [1], [2, 6], [3, 5]]


@given(st.lists(st.integers(1, 40), max_size=120), st.integers(40, 90), st.integers(0, 2**32 - 1))
def test_every_document_is_in_exactly_one_bin_and_no_bin_is_too_full(lengths, capacity, seed):
    bins = pack(np.array(lengths, dtype=np.int32), capacity, seed)
    assert sorted(bins.members.tolist()) == list(range(len(lengths)))
    left = [capacity - sum(lengths[i] for i in part) for part in bins_of(bins)]
    assert all(0 <= space < capacity for space in left)
    assert sorted(left) == naive_best_fit(lengths, capacity)


@given(st.lists(st.integers(1, 9), max_size=50), st.integers(0, 99))
def test_packing_follows_from_the_seed(lengths, seed):
    one, two = (pack(np.array(lengths, dtype=np.int32), 20, seed) for _ in range(2))
    assert bins_of(one) == bins_of(two)


def test_parts_are_packed_like_the_whole(monkeypatch):
    from finetune_trainer.data import pack as module

    lengths = np.r_[np.full(500, 90), np.full(5000, 10)]  # the long ones come first
    monkeypatch.setattr(module, "PART", 600)
    bins = pack(lengths, 100, seed=5)
    assert sorted(bins.members.tolist()) == list(range(5500))
    assert {int(lengths[part].sum()) for part in bins_of(bins)} == {100}


def test_another_seed_gives_another_order():
    lengths = np.full(40, 10)
    assert bins_of(pack(lengths, 20, 1)) != bins_of(pack(lengths, 20, 2))


@pytest.mark.parametrize("lengths", [[11], [0, 3]])
def test_what_cannot_be_packed_is_refused(lengths):
    with pytest.raises(ValueError, match="between 1 and 10"):
        pack(np.array(lengths), 10, 0)


def test_bins_in_the_order_of_the_data():
    bins = in_order(pack(np.array([9, 9, 1, 9, 1, 9]), 10, seed=3))
    parts = bins_of(bins)
    assert [min(part) for part in parts] == sorted(min(part) for part in parts)
    assert sorted(i for part in parts for i in part) == [0, 1, 2, 3, 4, 5]
    assert bins_of(alone(np.array([4, 2]))) == [[4], [2]]


@pytest.mark.parametrize(("capacity", "least"), [(2048, 0.995), (512, 0.99)])
def test_efficiency_on_lengths_like_alpacas(capacity, least):
    generator = np.random.Generator(np.random.PCG64(0))
    lengths = np.clip(generator.lognormal(np.log(90), 0.75, 50_000), 8, capacity).astype(np.int32)
    bins = pack(lengths, capacity, 42)
    assert lengths.sum() / (len(bins) * capacity) >= least


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "fraction", "held"),
    [
        (99, None, 0),
        (100, None, 2),
        (14_212, None, 284),
        (10**6, None, 1000),
        (40, 0.25, 10),
        (20, 0.02, 1),
        (1, 0.5, 0),
    ],
)
def test_how_many_rows_are_held_out(rows, fraction, held):
    assert held_out(rows, fraction).rows == held


@given(st.lists(st.integers(0, 30), max_size=80), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_equal_rows_are_never_on_both_sides(values, count, seed):
    hashes = np.array(values, dtype=np.uint64)
    held = validation_rows(hashes, count, seed)
    assert held.sum() <= max(count, 0)
    assert not set(hashes[held].tolist()) & set(hashes[~held].tolist())
    order = np.random.Generator(np.random.PCG64(1)).permutation(len(hashes))
    assert set(hashes[order][validation_rows(hashes[order], count, seed)]) == set(hashes[held])


def test_different_rows_are_held_out_exactly_and_by_seed():
    hashes = np.arange(1000, dtype=np.uint64)
    one, two = validation_rows(hashes, 20, 1), validation_rows(hashes, 20, 2)
    assert one.sum() == two.sum() == 20
    assert (one != two).any()


def test_weights_are_passes_an_epoch():
    hashes = np.arange(20_000, dtype=np.uint64)
    assert copies(hashes, 1.0, 0).tolist() == [1] * 20_000
    assert set(copies(hashes, 2.5, 0).tolist()) == {2, 3}
    assert abs(copies(hashes, 2.5, 0).mean() - 2.5) < 0.02
    assert abs(copies(hashes, 0.25, 0).mean() - 0.25) < 0.02


# --- spans ----------------------------------------------------------------------------------------


def test_tokens_that_reach_over_a_border():
    text = "ab cd"
    offsets = [(0, 1), (1, 4), (4, 5)]  # a | "b c" | d
    assert token_spans(text, offsets, [(3, 5)]) == [(2, 3)]  # "b c" holds a letter of the prompt
    assert token_spans("a  cd", offsets, [(3, 5)]) == [(1, 3)]  # "  c" holds only white space of it
    assert token_spans(text, offsets, [(0, 2)]) == []  # token 0 has nothing before it


def test_tokens_whose_characters_were_trimmed_off():
    # "x  y": the tokenizer reports its two spaces as empty, behind themselves
    assert token_spans("x  y", [(0, 1), (3, 3), (3, 4)], [(1, 4)]) == [(1, 3)]
    assert token_spans("x  y", [(0, 1), (3, 3), (3, 4)], [(1, 3)]) == [(1, 2)]


@given(st.data())
def test_spans_are_the_tokens_within_the_characters(data):
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=30))
    ends = np.cumsum(sizes).tolist()
    offsets = list(zip([0, *ends[:-1]], ends, strict=True))
    start = data.draw(st.integers(0, ends[-1]))
    stop = data.draw(st.integers(start, ends[-1]))
    inside = [i for i, (a, b) in enumerate(offsets) if a >= start and b <= stop and i > 0]
    expected = [(inside[0], inside[-1] + 1)] if inside else []
    assert token_spans("x" * ends[-1], offsets, [(start, stop)]) == expected


@given(st.data())
def test_pieces_keep_every_trained_token_but_the_first_of_each(data):
    length = data.draw(st.integers(2, 60))
    size = data.draw(st.integers(2, 60))
    points = sorted(data.draw(st.sets(st.integers(1, length), max_size=8)))
    spans = tuple(zip(points[::2], points[1::2], strict=False))
    document = Document(np.arange(length, dtype=np.uint32), spans)
    trained = {i for a, b in spans for i in range(a, b)}
    found: set[int] = set()
    for start in range(0, length, size):
        piece = cut(document, start, min(start + size, length))
        assert all(1 <= a < b <= len(piece.ids) for a, b in piece.spans)
        found |= {int(piece.ids[i]) for a, b in piece.spans for i in range(a, b)}
    assert found == {i for i in trained if i % size}


# --- batches --------------------------------------------------------------------------------------


def limits(**over) -> batch.Limits:
    values = {"epochs": 3, "max_steps": None, "global_batch": None, "micro_batch": None}
    return batch.Limits(**values | {"world_size": 1} | over)


@pytest.mark.parametrize(
    ("sequences", "over", "expected"),
    [
        (14_212, {}, (64, 222, 666)),
        (500, {}, (8, 62, 186)),  # 16 would leave 93
        (33, {}, (1, 33, 99)),  # nothing leaves 100: the smallest
        (7, {"epochs": 8}, (1, 7, 56)),
        (500, {"world_size": 16}, (16, 31, 93)),
        (10_000, {"world_size": 6}, (48, 208, 624)),
        (10_000, {"world_size": 128}, (128, 78, 234)),
        (10_000, {"micro_batch": 4, "world_size": 2}, (64, 156, 468)),
        (1000, {"max_steps": 10}, (64, 15, 10)),
        (500, {"max_steps": 1000}, (64, 7, 1000)),  # more passes than epochs says
        (1000, {"global_batch": 10, "epochs": 0.25}, (10, 100, 25)),
        (105, {"global_batch": 10, "epochs": 1}, (10, 10, 10)),
    ],
)
def test_the_global_batch(sequences, over, expected):
    found = batch.choose(sequences, limits(**over))
    assert (found.global_batch, found.steps_per_epoch, found.total_steps) == expected


def test_a_batch_that_ranks_do_not_divide():
    with pytest.raises(Refused) as caught:
        batch.choose(1000, limits(global_batch=10, world_size=4))
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == ("world-divides", "spec.training.globalBatchSize")
    assert problem.message == "global batch 10 cannot be shared by 4 ranks"
    assert problem.fix == "set training.globalBatchSize to 8 or 12"


def test_more_batch_than_data():
    with pytest.raises(Refused) as caught:
        batch.choose(7, limits(global_batch=64))
    (problem,) = caught.value.problems
    assert problem.message == "one epoch has 7 sequences, fewer than one global batch of 64"


def test_few_steps_are_warned_about_with_what_would_help():
    given_limits = limits(global_batch=64)
    found = batch.choose(256, given_limits)
    problem = batch.few_steps(256, found, given_limits, packing=True)
    assert problem is not None
    assert problem.severity == "warning"
    assert problem.message == "only 12 optimizer steps in all; little will be learnt"
    assert problem.fix == (
        "training.globalBatchSize: 38 or training.epochs: 5 or dataset.packing: false"
    )
    assert (
        batch.few_steps(2560, batch.choose(2560, given_limits), given_limits, packing=False) is None
    )


def test_packing_pays_only_where_enough_steps_are_left():
    assert not batch.packing_pays(33, limits())  # 99 steps
    assert batch.packing_pays(34, limits())
    assert not batch.packing_pays(500, limits(global_batch=64))
    assert batch.packing_pays(10, limits(max_steps=20))
