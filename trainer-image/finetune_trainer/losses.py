"""The loss of supervised fine-tuning: token losses over trained tokens, of all ranks together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

IGNORED = -100


def token_losses(
    logits: torch.Tensor, labels: torch.Tensor, *, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the sum of the cross entropies (fp32) of all tokens that have a label.

    ``logits`` is [batch, length, vocabulary], ``labels`` [batch, length]; the logits at one
    position predict the label of the next. Labels are shifted, not logits, which saves a copy.
    """
    shifted = functional.pad(labels, (0, 1), value=IGNORED)[..., 1:].reshape(-1)
    return functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(),
        shifted.to(logits.device),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


def trained_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Return how many tokens have a label and something before them, as a tensor."""
    return labels[..., 1:].ne(IGNORED).sum()


def training_loss(label_smoothing: float) -> Callable[..., torch.Tensor]:
    """Return the function that transformers calls with a model's outputs.

    ``num_items_in_batch`` are the trained tokens of the whole optimizer step over all ranks, so
    that neither accumulation nor the number of ranks changes what a token weighs.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        summed = token_losses(outputs.logits, labels, label_smoothing=label_smoothing)
        items = trained_tokens(labels) if num_items_in_batch is None else num_items_in_batch
        if isinstance(items, torch.Tensor):
            items = items.to(summed.device)
        return summed / items

    return loss
