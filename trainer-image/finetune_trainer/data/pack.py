"""Documents into sequences of at most ``capacity`` tokens: best-fit decreasing.

The result is exactly best-fit decreasing (Johnson 1974), but items of one length are placed
together and bins of one remaining space are kept together, so that the number of steps is bounded
by lengths and spaces, not by documents; all else is array slices. Beyond 131,072 documents, equal
parts are packed one by one: so many fill their sequences as well as all would, and time stays
linear.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Bins:
    """Sequence i consists of the items ``members[ends[i-1]:ends[i]]``."""

    members: npt.NDArray[np.uint32]
    ends: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)


PART = 1 << 17
"""Items that are packed together."""


def pack(lengths: Array, capacity: int, seed: int) -> Bins:
    """Place every item in exactly one bin; no bin holds more than ``capacity`` tokens.

    The order of items of one length, of the items in a bin, and of the bins follows from ``seed``.
    Raises ``ValueError`` when an item is empty or longer than the capacity.
    """
    sizes = np.asarray(lengths, dtype=np.int32)
    if len(sizes) == 0:
        return Bins(np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64))
    if sizes.min() < 1 or sizes.max() > capacity:
        raise ValueError(f"lengths must be between 1 and {capacity}")
    generator = np.random.Generator(np.random.PCG64(seed))
    parts = -(-len(sizes) // PART)
    members, counts = [], []
    for part in range(parts):  # every so-manieth item: a source of long rows is in all parts
        items, ends = _packed(sizes[part::parts], capacity, generator)
        members.append(items * np.uint32(parts) + np.uint32(part))
        counts.append(np.diff(ends, prepend=0))
    return Bins(np.concatenate(members), np.cumsum(np.concatenate(counts)))


def _packed(
    sizes: Array, capacity: int, generator: np.random.Generator
) -> tuple[npt.NDArray[np.uint32], Array]:
    """Return the members and ends of the bins of one part."""
    shuffled = generator.permutation(np.arange(len(sizes), dtype=np.uint32))
    order = shuffled[_stable_order(capacity - sizes[shuffled])]
    bin_of, count = _place(sizes[order], capacity)
    renamed = generator.permutation(np.arange(count, dtype=np.uint32))[bin_of]
    ends = np.cumsum(np.bincount(renamed, minlength=count))
    return order[_stable_order(renamed)], ends


def _stable_order(keys: Array) -> Array:
    """Return the stable order of numbers below 2**32.

    Keys and positions are sorted as one number: numpy sorts plain numbers several times faster
    than it finds the order of others.
    """
    both = keys.astype(np.uint64) << np.uint64(32)
    both |= np.arange(len(keys), dtype=np.uint64)
    both.sort()
    return both.astype(np.uint32)  # the lower half


def _place(descending: Array, capacity: int) -> tuple[Array, int]:
    """Return the bin of each item, and how many bins there are; lengths fall."""
    bin_of = np.empty(len(descending), dtype=np.uint32)
    space = _Space()
    bins = 0
    values, counts = np.unique(descending, return_counts=True)
    at = 0
    for length, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        stop = at + count
        while at < stop:
            left = space.smallest(length)
            if left is None:
                left = capacity
                wanted = -(-(stop - at) // (left // length))
                chosen = np.arange(bins, bins + wanted)
                bins += wanted
            else:
                chosen = space.take(left, -(-(stop - at) // (left // length)))
            each = left // length
            placed = min(stop - at, each * len(chosen))
            bin_of[at : at + placed] = np.repeat(chosen, each)[:placed]
            full, rest = divmod(placed, each)
            space.put(left - each * length, chosen[:full])
            if rest:
                space.put(left - rest * length, chosen[full : full + 1])
            at += placed
    return bin_of, bins


class _Space:
    """Open bins by the space that they have left."""

    def __init__(self) -> None:
        self._sorted: list[int] = []
        self._bins: dict[int, list[Array]] = {}

    def smallest(self, least: int) -> int | None:
        position = bisect_left(self._sorted, least)
        return self._sorted[position] if position < len(self._sorted) else None

    def put(self, left: int, bins: Array) -> None:
        if left and len(bins):
            if left not in self._bins:
                insort(self._sorted, left)
                self._bins[left] = []
            self._bins[left].append(bins)

    def take(self, left: int, wanted: int) -> Array:
        stock = self._bins[left]
        taken: list[Array] = []
        while wanted and stock:
            last = stock.pop()
            taken.append(last[:wanted])
            if wanted < len(last):
                stock.append(last[wanted:])
            wanted -= len(taken[-1])
        if not stock:
            del self._bins[left]
            self._sorted.pop(bisect_left(self._sorted, left))
        return np.concatenate(taken)


def alone(items: Array) -> Bins:
    """One sequence an item, without packing."""
    return Bins(np.asarray(items, dtype=np.uint32), np.arange(1, len(items) + 1, dtype=np.int64))


def in_order(bins: Bins) -> Bins:
    """Order the bins by their first item, for data that has to be seen in the order it has."""
    starts = np.concatenate([[0], bins.ends[:-1]])
    first = np.minimum.reduceat(bins.members, starts) if len(bins) else starts
    order = np.argsort(first, kind="stable")
    sizes = (bins.ends - starts)[order]
    ends = np.cumsum(sizes)
    offsets = np.repeat(starts[order] - (ends - sizes), sizes)
    return Bins(bins.members[np.arange(len(bins.members)) + offsets], ends)
