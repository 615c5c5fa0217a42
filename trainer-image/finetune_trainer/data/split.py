"""Which rows are held out, and how often a row is seen: by content and seed alone.

Equal rows share a hash, so that a copy of a validation row is never trained on, and neither the
order of rows nor the machine changes the choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DEFAULT_FRACTION = 0.02
DEFAULT_MOST = 1000
DEFAULT_LEAST_ROWS = 100

Hashes = npt.NDArray[np.uint64]
_SPAN = float(2**64)


@dataclass(frozen=True)
class Held:
    """How many rows to hold out, and why."""

    rows: int
    reason: str


def held_out(rows: int, fraction: float | None) -> Held:
    """Return the size of the validation split.

    Absent fraction: 2 % of the rows and at most 1,000; none below 100 rows.
    """
    if fraction is not None:
        # Whoever asks for validation gets at least one row of it.
        return Held(
            max(int(rows * fraction), min(1, rows - 1)), f"dataset.validation.fraction {fraction:g}"
        )
    if rows < DEFAULT_LEAST_ROWS:
        return Held(0, f"{rows} rows are fewer than {DEFAULT_LEAST_ROWS}")
    return Held(min(DEFAULT_MOST, int(rows * DEFAULT_FRACTION)), "2 % of the rows, at most 1,000")


def mixed(hashes: Hashes, seed: int, purpose: int) -> Hashes:
    """Return hashes that are independent of others of the same rows (splitmix64)."""
    with np.errstate(over="ignore"):
        state = hashes + np.uint64((seed * 2 + purpose + 1) & (2**64 - 1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed_hashes: Hashes = state ^ (state >> np.uint64(31))
    return mixed_hashes


def validation_rows(hashes: Hashes, count: int, seed: int) -> npt.NDArray[np.bool_]:
    """Mark at most ``count`` rows; equal rows are marked together or not at all."""
    if count <= 0:
        return np.zeros(len(hashes), dtype=np.bool_)
    keys = mixed(hashes, seed, 0)
    ordered = np.sort(keys)
    if count >= len(ordered):
        return np.ones(len(hashes), dtype=np.bool_)
    # A group of equal rows that would reach beyond the count stays out as a whole.
    marked: npt.NDArray[np.bool_] = keys < ordered[count]
    return marked


def copies(hashes: Hashes, weight: float, seed: int) -> npt.NDArray[np.int64]:
    """Return how often each row is seen in an epoch: ``weight`` on average, never off by one."""
    whole = int(weight)
    keys = mixed(hashes, seed, 1).astype(np.float64) / _SPAN
    return whole + (keys < weight - whole).astype(np.int64)
