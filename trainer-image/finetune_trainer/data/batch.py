"""Batch arithmetic: sequences, steps and the global batch. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetune_api.job import JobSpec
from finetune_api.problem import Problem, Refused

ENOUGH_STEPS = 100
MOST = 64
FEW_STEPS = 20


@dataclass(frozen=True)
class Limits:
    """What the job fixes about batches."""

    epochs: float
    max_steps: int | None
    global_batch: int | None
    micro_batch: int | None
    world_size: int

    @property
    def unit(self) -> int:
        """Every global batch is a multiple of this."""
        return self.world_size * (self.micro_batch or 1)

    @property
    def enough(self) -> int:
        """Steps that a chosen batch has to leave: 100, or all that ``maxSteps`` allows."""
        return min(ENOUGH_STEPS, self.max_steps or ENOUGH_STEPS)


def limits_of(spec: JobSpec) -> Limits:
    """Return what a job fixes about batches."""
    training = spec.training
    return Limits(
        epochs=training.epochs,
        max_steps=training.max_steps,
        global_batch=training.global_batch_size,
        micro_batch=training.micro_batch_size,
        world_size=spec.resources.world_size,
    )


@dataclass(frozen=True)
class Batches:
    """A global batch and the steps that follow from it."""

    global_batch: int
    steps_per_epoch: int
    total_steps: int
    reason: str = ""
    """Why the batch is what it is; empty where the job says it."""


def steps(sequences: int, batch: int, limits: Limits) -> tuple[int, int]:
    """Return (steps of an epoch, steps of the job).

    An epoch has complete global batches only: the rest is left out, and is another rest in the
    next epoch, because every epoch is shuffled anew. The job has ``maxSteps`` steps where they are
    given, over as many epochs as that takes, else ``epochs`` epochs, rounded up to a step.
    """
    per_epoch = sequences // batch
    if per_epoch and limits.max_steps:
        return per_epoch, limits.max_steps
    return per_epoch, math.ceil(limits.epochs * per_epoch - 1e-9)


def choose(sequences: int, limits: Limits) -> Batches:
    """Return the job's global batch, or the largest that leaves enough steps.

    Candidates are the powers of two up to 64, from the world size (times a given micro batch) on;
    where that is no power of two, its multiples by powers of two. Raises ``Refused`` when one
    epoch does not fill a batch or ranks do not divide it.
    """
    if limits.global_batch is not None:
        if limits.global_batch % limits.unit:
            raise Refused(_indivisible(limits.global_batch, limits))
        _require(sequences, limits.global_batch, "training.globalBatchSize")
        return Batches(limits.global_batch, *steps(sequences, limits.global_batch, limits))
    _require(sequences, limits.unit, "resources.nodes")
    batch = limits.unit
    while batch * 2 <= MOST and steps(sequences, batch * 2, limits)[1] >= limits.enough:
        batch *= 2
    per_epoch, total = steps(sequences, batch, limits)
    if total >= limits.enough:
        reason = f"the largest up to {MOST} that leaves {limits.enough} steps"
    else:
        reason = f"the smallest for {_ranks(limits)}: more would leave even fewer steps"
    return Batches(batch, per_epoch, total, f"{reason}: {total:,} steps")


def _ranks(limits: Limits) -> str:
    ranks = f"{limits.world_size} rank" + "s" * (limits.world_size > 1)
    return ranks + (f" with micro batch {limits.micro_batch}" if limits.micro_batch else "")


def _indivisible(batch: int, limits: Limits) -> Problem:
    unit = limits.unit
    near = sorted({max(unit, batch // unit * unit), (batch // unit + 1) * unit})
    return Problem(
        code="world-divides",
        message=f"global batch {batch} cannot be shared by {_ranks(limits)}",
        fix=f"set training.globalBatchSize to {' or '.join(map(str, near))}",
        field="spec.training.globalBatchSize",
    )


def _require(sequences: int, batch: int, field: str) -> None:
    if sequences >= batch:
        return
    raise Refused(
        Problem(
            code="batch-larger-than-data",
            message=f"one epoch has {sequences} sequences, fewer than one global batch of {batch}",
            fix=f"a smaller spec.{field}, more rows, or dataset.packing: false",
            field=f"spec.{field}",
        )
    )


def packing_pays(packed_sequences: int, limits: Limits) -> bool:
    """Return whether enough steps are left when packed, at the smallest batch there may be."""
    batch = limits.global_batch or limits.unit
    return steps(packed_sequences, batch, limits)[1] >= limits.enough


def few_steps(sequences: int, batches: Batches, limits: Limits, *, packing: bool) -> Problem | None:
    """Return a warning when so few steps are left that little can be learnt."""
    if batches.total_steps >= FEW_STEPS or limits.max_steps == batches.total_steps:
        return None
    wanted = limits.epochs * FEW_STEPS / max(1, batches.total_steps)
    fixes = [f"training.epochs: {math.ceil(wanted)}"]
    smaller = int(sequences * limits.epochs / FEW_STEPS) // limits.unit * limits.unit
    if limits.unit <= smaller < batches.global_batch:
        fixes.insert(0, f"training.globalBatchSize: {smaller}")
    if packing:
        fixes.append("dataset.packing: false")
    return Problem(
        code="few-steps",
        message=f"only {batches.total_steps} optimizer steps in all; little will be learnt",
        fix=" or ".join(fixes),
        field="spec.training.epochs",
        severity="warning",
    )
