"""``spec.parallelism``: the engine (one of deepspeed, fsdp, ddp) and the sizes beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.document import Document

Size = Annotated[int, Field(ge=1, le=4096)]


class DeepSpeed(Document):
    """ZeRO (arXiv:1910.02054)."""

    zero_stage: Annotated[int, Field(ge=1, le=3)] = 2
    """1 divides the optimizer state over the ranks, 2 the gradients too, 3 the weights too."""
    offload_optimizer: Literal["cpu"] | None = None
    offload_parameters: Literal["cpu"] | None = None


class Fsdp(Document):
    """Fully sharded data parallelism of PyTorch (FSDP2)."""

    reshard_after_forward: bool = True
    cpu_offload: bool = False


class Ddp(Document):
    """Every rank holds everything; gradients are averaged."""


class Parallelism(Document):
    """At most one of deepspeed, fsdp and ddp, and sizes beside it.

    Absent: ddp on one rank and for adapters, ZeRO-2 for full fine-tuning on several.
    """

    deepspeed: DeepSpeed | None = None
    fsdp: Fsdp | None = None
    ddp: Ddp | None = None
    tensor_parallel_size: Size = 1
    pipeline_parallel_size: Size = 1
    sequence_parallel_size: Size = 1

    @property
    def engine(self) -> Literal["deepspeed", "fsdp", "ddp"]:
        """The engine that was asked for."""
        return "deepspeed" if self.deepspeed else "fsdp" if self.fsdp else "ddp"
