"""``spec.training``: batches, steps, the optimizer and precision."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.document import Document, filled

Batch = Annotated[int, Field(ge=1, le=1_048_576)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]


class Training(Document):
    """How the weights are moved."""

    epochs: Annotated[float, Field(gt=0, le=10_000)] = 3
    max_steps: Steps | None = None
    """So many optimizer steps, whatever ``epochs`` says: fewer or more passes over the data."""
    global_batch_size: Batch | None = None
    """Sequences a step over all ranks, as the model sees them (packed ones when packing); it never
    changes in a job's life. Absent: the largest power of two up to 64 (and at least the world
    size) that leaves 100 steps."""
    micro_batch_size: Batch | None = None
    """Sequences a rank at once. Absent: what fits."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = filled()
    """Absent: by method and objective (SFT with LoRA 2e-4, full 1e-5)."""
    min_learning_rate: Annotated[float, Field(ge=0, le=10)] | None = None
    """Where a cosine schedule ends. Absent: 0."""
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "lamb", "lion"] = (
        "adamw_torch"
    )
    betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)
    ] = [0.9, 0.999]
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    lr_scheduler: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "cosine_with_min_lr",
        "warmup_stable_decay",
    ] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """Part of all steps. Absent, with ``warmupSteps`` absent: 0.03."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Gradients are scaled down to this norm; 0 turns it off."""
    precision: Literal["bf16", "fp16", "fp32", "pureBf16"] = filled()
    """Of the arithmetic. Trainable weights and optimizer state are fp32 but in pureBf16.
    Absent: bf16 on an accelerator, fp32 on a CPU."""
    gradient_checkpointing: bool = filled()
    """Recompute activations instead of keeping them. Absent: on with an accelerator."""
    neftune_alpha: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Noise on the input embeddings (arXiv:2310.05914)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    sampling: Literal["Random", "Sequential", "GroupByLength"] = "Random"
    compile: bool = False
    logging_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
