"""How much memory one rank needs: what is held all the time, and what a step adds.

What is held follows ZeRO (arXiv:1910.02054, section 3.1 and 5): weights, gradients, and the
optimizer's fp32 masters and moments, each divided over the ranks from the stage on that divides it.
What a step adds is traced (``memory.trace``), or where that cannot be, a formula.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from finetune_api.job import JobSpec
from finetune_api.resolved import StageConfig
from finetune_trainer import methods
from finetune_trainer.memory.trace import trace
from finetune_trainer.model import empty_model

log = logging.getLogger(__name__)

GIB = 1 << 30
MOMENTS = {"sgd": 0.0, "adafactor": 0.1, "lion": 1.0}
"""Tensors of the optimizer for each trained weight; two for Adam and its kin."""
GATHERED = 10**9
"""Weights that ZeRO-3 keeps whole at once (DeepSpeed's ``stage3_max_live_parameters``)."""
CUDA_CONTEXT = GIB
"""Context, libraries' workspaces and communication buffers (0.3 to 2 GiB are seen)."""
CPU_PROCESS = int(1.2 * GIB)
"""A process that has imported the libraries."""


@dataclass(frozen=True)
class Held:
    """Bytes that one rank holds all the time, and what its optimizer step adds."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    """Buckets of gradients on their way, weights that ZeRO-3 has gathered."""
    step: int
    """For the time of the optimizer step, when activations are gone."""

    @property
    def always(self) -> int:
        """All but ``step``."""
        return self.weights + self.gradients + self.optimizer + self.buffers


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated at once."""

    length: int
    """Tokens of the longest validation sequence."""
    most: int
    """Sequences that one rank evaluates in all."""
    batch_size: int | None = None
    """At once; None: as many as the micro-batch."""

    def at_once(self, micro_batch: int) -> int:
        """Return the sequences of one forward pass."""
        return min(self.batch_size or micro_batch, self.most)


@dataclass(frozen=True)
class Estimate:
    """The memory of one rank as a function of its micro-batch."""

    held: Held
    fixed: int
    """Of a step, whatever the micro-batch."""
    per_sequence: int
    process: int
    how: Literal["traced", "formula"]
    evaluated: Evaluated | None = None
    evaluation_fixed: int = 0
    """Of an evaluation's forward pass, whatever its batch."""
    evaluation_each: int = 0

    def activations(self, micro_batch: int) -> int:
        """Return the bytes that forward and backward add."""
        return self.fixed + self.per_sequence * micro_batch

    def evaluation(self, micro_batch: int) -> int:
        """Return the bytes that an evaluation's forward pass adds; 0 where there is none."""
        if self.evaluated is None:
            return 0
        return self.evaluation_fixed + self.evaluation_each * self.evaluated.at_once(micro_batch)

    def training(self, micro_batch: int) -> int:
        """Return the most bytes that a step adds, its optimizer's part with it."""
        return max(self.activations(micro_batch), self.held.step)

    def added(self, micro_batch: int) -> int:
        """Return the most bytes that come to what is held always."""
        return max(self.training(micro_batch), self.evaluation(micro_batch))

    def peak(self, micro_batch: int) -> int:
        """Return the most bytes that are in use at once."""
        return self.process + self.held.always + self.added(micro_batch)


def held(spec: JobSpec, counts: methods.Counts) -> Held:
    """Return what one rank holds, by engine, ZeRO stage, precision and optimizer."""
    world, trained = spec.resources.world_size, counts.trainable
    frozen = counts.total - trained
    half = spec.training.precision != "fp32"
    pure = spec.training.precision == "pureBf16"
    moments = MOMENTS.get(spec.training.optimizer, 2.0)
    deepspeed = spec.parallelism.deepspeed
    if deepspeed is None:
        size = 2 if pure else 4
        many = world > 1
        whole = spec.resources.accelerator.device == "cuda"
        return Held(
            weights=trained * size + frozen * (2 if half else 4),
            gradients=trained * size,
            optimizer=int(trained * size * moments),
            buffers=trained * size if many else 0,
            step=trained * size if whole else 0,
        )
    size, stage = (2 if half else 4), deepspeed.zero_stage
    on_device = deepspeed.offload_optimizer is None
    weights = (trained + frozen) * size
    gathered = min(trained + frozen, GATHERED) * size
    return Held(
        weights=(0 if deepspeed.offload_parameters else weights // world)
        if stage == 3
        else weights,
        gradients=trained * size // (world if stage >= 2 else 1),
        optimizer=int(trained * 4 * (1 + moments)) // world if on_device else 0,
        buffers=gathered if stage == 3 and world > 1 else 0,
        step=trained * 4 // world if on_device else 0,
    )


def estimate(config: StageConfig, length: int, evaluated: Evaluated | None = None) -> Estimate:
    """Return the memory of one rank for sequences of ``length`` tokens.

    ``evaluated``: what is evaluated between steps, where there is validation data.
    """
    spec = config.job.spec
    cuda = spec.resources.accelerator.device == "cuda"
    process = CUDA_CONTEXT if cuda else CPU_PROCESS
    try:
        traced = trace(config, length, (1, 2), evaluated.length if evaluated else None)
    except Exception as error:  # whatever an architecture does that fake tensors cannot
        log.warning("the step cannot be traced (%s); memory is estimated by formula", error)
        counts = methods.counts(methods.structure(config))
        fixed, each = formula(config, counts, length)
        passed = evaluation_formula(config, evaluated.length) if evaluated else 0
        weights = held(spec, counts)
        return Estimate(weights, fixed, each, process, "formula", evaluated, 0, passed)
    fixed, each = _line(traced.peaks, length)
    passes = _line(traced.evaluations, evaluated.length) if evaluated else (0, 0)
    weights = held(spec, traced.counts)
    return Estimate(weights, fixed, each, process, "traced", evaluated, *passes)


def _line(peaks: tuple[int, ...], length: int) -> tuple[int, int]:
    """Return (fixed, per sequence) bytes from those of one and of two sequences."""
    one, two = peaks
    each = max(0, two - one)
    mask = 2 * length * length  # accelerators keep a mask in 16 bits beside the traced booleans
    return max(0, one - each), each + mask


def formula(config: StageConfig, counts: methods.Counts, length: int) -> tuple[int, int]:
    """Return (fixed, per sequence) bytes of a step from the model's dimensions.

    A layer keeps about 8 tensors of the hidden size and 4 of the MLP's, two more of the hidden
    size in fp32 for its norms (arXiv:2205.05198, section 4.1, with SwiGLU's terms); recomputation
    keeps its input only, and one layer is live. Logits are held in their own type and twice in
    fp32. Attention is taken to be fused.
    """
    spec = config.job.spec
    text = empty_model(config).config.get_text_config()
    size = 4 if spec.training.precision == "fp32" else 2
    hidden, layers = int(text.hidden_size), int(text.num_hidden_layers)
    inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    active = int(getattr(text, "num_experts_per_tok", None) or 1)
    layer = length * (size * (8 * hidden + 4 * inner * active) + 8 * hidden)
    kept = length * hidden * size
    logits = length * int(text.vocab_size) * (size + 8)
    body = layers * kept + layer if spec.training.gradient_checkpointing else layers * layer
    cast = counts.trainable * 2 if size == 2 and spec.parallelism.deepspeed is None else 0
    return cast, body + logits


def evaluation_formula(config: StageConfig, length: int) -> int:
    """Return the bytes of one sequence in a forward pass without gradients: a layer, and logits.

    Logits are held in their own type and twice in fp32, as in ``formula``.
    """
    text = empty_model(config).config.get_text_config()
    size = 4 if config.job.spec.training.precision == "fp32" else 2
    hidden = int(text.hidden_size)
    inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    active = int(getattr(text, "num_experts_per_tok", None) or 1)
    layer = length * (size * (8 * hidden + 4 * inner * active) + 8 * hidden)
    return max(layer, length * int(text.vocab_size) * (size + 8))
