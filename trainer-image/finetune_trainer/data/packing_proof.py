"""Packing is proved on the job's own architecture and method, never looked up in a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_api.problem import Refused
from finetune_api.resolved import StageConfig
from finetune_trainer.data.collate import IGNORED, Collator

TOLERANCE = 1e-4
VISIBLE = 1e-2
"""What documents that do see each other have to change, or the comparison would prove nothing."""
LENGTHS = ((7, 19, 12), (23, 5))
"""Documents of two packed sequences of unlike length: padding is part of the proof."""


@dataclass(frozen=True)
class Proof:
    """Whether the losses of packed documents are those of the same documents alone."""

    holds: bool
    reason: str


def prove(config: StageConfig) -> Proof:
    """Compare packed with unpacked losses, token by token, on a random two-layer model.

    The model has the job's architecture, attention and method. Whatever cannot be built or run
    here is not proved.
    """
    attention = config.job.spec.model.attention
    if attention.startswith("flash"):
        return Proof(False, f"{attention} cannot be run here; packing is proved with sdpa or eager")
    try:
        model = _model(config)
        difference = largest_difference(model)
        leak = largest_difference(model, joined=True)
    except Refused:
        raise
    except Exception as error:  # any architecture or method may fail in its own way
        return Proof(False, f"it could not be proved: {type(error).__name__}: {error!s:.200}")
    if not leak >= VISIBLE:
        return Proof(
            False,
            f"it could not be proved: joined documents change losses by {leak:.0e} only, too "
            "little to be seen",
        )
    if not difference <= TOLERANCE:
        return Proof(
            False,
            f"documents of one sequence see each other in this model: losses differ by up to "
            f"{difference:.1e}",
        )
    return Proof(True, f"packed and unpacked losses agree to {difference:.0e} on two layers")


def _model(config: StageConfig) -> Any:

    from finetune_trainer import methods
    from finetune_trainer.model import tiny

    model = methods.apply(tiny(config), _for_two_layers(config)).eval()
    enliven(model)
    return model


def enliven(model: Any) -> None:
    """Give every matrix random weights that keep activations near one.

    Fresh models, and adapters that start at zero, are so close to doing nothing that a leak from
    one document to the next would drown in rounding.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                narrow = parameter.dim() == 3 and parameter.shape[1] == 1  # a depthwise kernel
                inputs = parameter.shape[1:].numel() if narrow else parameter.shape[-1]
                parameter.normal_(0, inputs**-0.5, generator=generator)


def _for_two_layers(config: StageConfig) -> StageConfig:
    """Return the configuration without what names layers or tokens beyond a two-layer model."""
    lora = config.job.spec.method.lora
    if lora is None:
        return config
    small = lora.model_copy(
        update={
            "layers_to_transform": None,
            "layers_pattern": None,
            "layer_replication": None,
            "trainable_token_indices": None,
            "rank_pattern": None,
            "alpha_pattern": None,
        }
    )
    method = config.job.spec.method.model_copy(update={"lora": small})
    spec = config.job.spec.model_copy(update={"method": method})
    return config.model_copy(update={"job": config.job.model_copy(update={"spec": spec})})


def largest_difference(model: Any, *, joined: bool = False) -> float:
    """Return the largest difference of a token's loss between packed and alone.

    ``joined`` packs as it must not be done, with a mask of ones and positions that run on.
    """
    import torch

    vocabulary = model.get_input_embeddings().num_embeddings
    generator = np.random.Generator(np.random.PCG64(0))
    packs = [
        [generator.integers(1, vocabulary, size=length) for length in lengths]
        for lengths in LENGTHS
    ]
    packed = Collator(0, packing=True)([_item(documents) for documents in packs])
    if joined:
        packed["attention_mask"] = torch.ones_like(packed.pop("position_ids"))
    together = _losses(model, packed)
    worst = 0.0
    for row, documents in enumerate(packs):
        start = 0
        for document in documents:
            alone = _losses(model, Collator(0, packing=False)([_item([document])]))[0]
            stop = start + len(document)
            difference = (together[row, start : stop - 1] - alone[: len(document) - 1]).abs().max()
            worst = max(worst, float(torch.nan_to_num(difference, nan=float("inf"))))
            start = stop
    return worst


def _item(documents: list[Any]) -> dict[str, Any]:
    ids = np.concatenate(documents)
    return {
        "input_ids": ids,
        "spans": np.asarray([[0, len(ids)]], dtype=np.int32),
        "lengths": np.asarray([len(document) for document in documents], dtype=np.int32),
        "sample_id": 0,
    }


def _losses(model: Any, batch: dict[str, Any]) -> Any:
    """Return the loss of predicting token i+1 at position i, [batch, n - 1]."""
    import torch

    inputs = {name: value for name, value in batch.items() if name not in {"labels", "sample_ids"}}
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    targets = batch["labels"][:, 1:]
    losses: torch.Tensor = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED
    )
    return losses
