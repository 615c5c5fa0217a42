"""Which samples an optimizer step consumes: a function of seed, epoch and step alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
_GROUP = 50
"""Global batches that are sorted by length together under GroupByLength."""


def epoch_order(
    samples: int,
    seed: int,
    epoch: int,
    *,
    sampling: Literal["Random", "Sequential", "GroupByLength"] = "Random",
    global_batch: int = 1,
    lengths: Indices | None = None,
) -> Indices:
    """Return the order in which one epoch visits its samples; the same on every machine.

    Random draws a permutation from (seed, epoch). GroupByLength draws the same one and sorts
    stretches of it by length, so that a batch holds rows of like length.
    """
    if sampling == "Sequential":
        return np.arange(samples, dtype=np.int64)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    order: Indices = generator.permutation(samples).astype(np.int64)
    if sampling == "GroupByLength" and lengths is not None:
        stretch = _GROUP * global_batch
        for start in range(0, samples, stretch):
            part = order[start : start + stretch]
            order[start : start + stretch] = part[np.argsort(-lengths[part], kind="stable")]
    return order


def step_digest(sample_ids: Sequence[int]) -> str:
    """Return the SHA-256 of a step's sorted sample ids: equal sets have equal digests."""
    text = ",".join(str(sample) for sample in sorted(sample_ids))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class GlobalBatches:
    """One rank's micro-batches, as a torch ``batch_sampler``.

    A global batch is a stretch of the epoch's order; micro-batch ``m`` of rank ``r`` is its part
    number ``m * world + r``. So an optimizer step consumes the same samples at any world size and
    any micro-batch size, and only complete global batches are used.
    """

    samples: int
    seed: int
    global_batch: int
    micro_batch: int
    rank: int
    world_size: int
    sampling: Literal["Random", "Sequential", "GroupByLength"] = "Random"
    lengths: Indices | None = field(default=None, repr=False)
    epoch: int = 0

    @property
    def accumulation(self) -> int:
        """Micro-batches of one rank in a step."""
        return self.global_batch // (self.micro_batch * self.world_size)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return self.samples // self.global_batch

    @property
    def batch_sampler(self) -> GlobalBatches:
        """Itself: transformers looks for ``batch_sampler.batch_sampler.set_epoch``."""
        return self

    @property
    def batch_size(self) -> int:
        """Samples of a micro-batch."""
        return self.micro_batch

    @property
    def drop_last(self) -> bool:
        """Incomplete batches do not exist."""
        return True

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, that the next iteration visits."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch."""
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the micro-batches of this rank, in order."""
        order = epoch_order(
            self.samples,
            self.seed,
            self.epoch,
            sampling=self.sampling,
            global_batch=self.global_batch,
            lengths=self.lengths,
        )
        for step in range(self.steps):
            batch = order[step * self.global_batch : (step + 1) * self.global_batch]
            parts = batch.reshape(self.accumulation, self.world_size, self.micro_batch)
            for part in parts[:, self.rank]:
                yield part.tolist()
