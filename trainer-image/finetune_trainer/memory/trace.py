"""The memory that a step takes beside weights and optimizer: the real step run on fake tensors.

Fake tensors have shapes, types and storages but no data, so a step of a 70B model runs in seconds
on a laptop. A dispatch mode counts the bytes of the storages that are alive.
"""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_api.resolved import StageConfig
from finetune_trainer import methods

if TYPE_CHECKING:
    import torch

BLOCK = 512
"""Bytes; allocators round up to it."""


@dataclass(frozen=True)
class Traced:
    """What traced steps say."""

    peaks: tuple[int, ...]
    """Bytes at the peak of forward and backward, beside weights and gradients, by micro-batch."""
    counts: methods.Counts
    evaluations: tuple[int, ...] = ()
    """The same of a forward pass without gradients, on sequences of validation data."""


class LiveStorages:
    """Counts the bytes of storages that operations make, for as long as they are alive."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.live = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def ignore(self, tensor: torch.Tensor) -> None:
        """Leave a tensor's storage out, and all views of it."""
        self._add(tensor.untyped_storage(), 0)

    def see(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._add(storage, -(-storage.nbytes() // BLOCK) * BLOCK)

    def _add(self, storage: Any, size: int) -> None:
        self._known[storage._cdata] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, storage._cdata).atexit = False

    def _gone(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)


@contextlib.contextmanager
def counting(storages: LiveStorages) -> Iterator[None]:
    """Count what every operation returns while the body runs."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    storages.see(leaf)
            return out

    with Mode():  # type: ignore[no-untyped-call]
        yield


def trace(
    config: StageConfig,
    length: int,
    micro_batches: Sequence[int],
    evaluated_length: int | None = None,
) -> Traced:
    """Return the memory of one forward and backward pass, for each number of full sequences.

    Gradients exist already, as they do from the second micro-batch on. Raises whatever an
    architecture raises that cannot run without data (routers that look at values).
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = fake_model(config)
        peaks = tuple(step_peak(model, config, micro, length) for micro in micro_batches)
        evaluations = tuple(
            evaluation_peak(model, config, batch, evaluated_length)
            for batch in (micro_batches if evaluated_length else ())
        )
        return Traced(peaks, methods.counts(model), evaluations)


def fake_model(config: StageConfig) -> Any:
    """Return the job's model as it is trained, with fake weights; call it under the fake mode."""
    import torch

    spec = config.job.spec
    model = methods.structure(config)
    half = arithmetic(config)
    if spec.parallelism.deepspeed and half is not None:
        model = model.to(half)  # the engine holds 16-bit weights; its masters are counted apart
    made: dict[int, torch.Tensor] = {}  # tied weights stay one
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if id(weight) not in made:
                    empty = torch.empty(weight.shape, dtype=weight.dtype)
                    made[id(weight)] = torch.nn.Parameter(empty, weight.requires_grad)
                module._parameters[name] = made[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    if spec.training.gradient_checkpointing:
        # Random state is no fake tensor, and what dropout draws has no size.
        model.activation_checkpointing_enable(
            {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
        )
    return model.train()


def step_peak(model: Any, config: StageConfig, micro_batch: int, length: int) -> int:
    """Return the peak bytes of one forward and backward pass, beside weights and gradients.

    Each sequence is two packed documents, where the architecture can tell them apart: the mask
    between them is what padding needs as well.
    """
    import torch

    storages = LiveStorages()
    for tensor in [*model.parameters(), *model.buffers()]:
        storages.ignore(tensor)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            storages.ignore(parameter.grad)
    half = arithmetic(config)
    cast = half is not None and not config.job.spec.parallelism.deepspeed
    with counting(storages):
        inputs = _inputs(model, micro_batch, length)
        with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=cast):
            loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
    return storages.peak


def evaluation_peak(model: Any, config: StageConfig, batch: int, length: int | None) -> int:
    """Return the peak bytes of an evaluation's forward pass and its losses, beside the weights."""
    import torch

    from finetune_trainer.losses import token_losses

    storages = LiveStorages()
    for tensor in [*model.parameters(), *model.buffers()]:
        storages.ignore(tensor)
    half = arithmetic(config)
    cast = half is not None and not config.job.spec.parallelism.deepspeed
    training = model.training
    model.eval()
    with torch.no_grad(), counting(storages):
        inputs = _inputs(model, batch, length or 1)
        with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=cast):
            logits = model(**inputs).logits
        if cast:
            logits = logits.float()  # what a model under automatic casts returns
        token_losses(logits, inputs["input_ids"])
    model.train(training)
    return storages.peak


def _inputs(model: Any, batch: int, length: int) -> dict[str, Any]:
    """Return what a model is called with: every sequence holds two documents."""
    import torch

    inputs = {"input_ids": torch.zeros(batch, length, dtype=torch.long)}
    if "position_ids" in inspect.signature(_plain(model).forward).parameters:
        positions = torch.arange(length) % -(-length // 2)
        inputs["position_ids"] = positions.expand(batch, length)
    return inputs


def _plain(model: Any) -> Any:
    """Return the model itself, without peft around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def arithmetic(config: StageConfig) -> torch.dtype | None:
    """Return the 16-bit type that fp32 weights are computed in; None where there is none."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.job.spec.training.precision)
