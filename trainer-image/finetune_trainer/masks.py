"""Attention masks are chosen by what the host knows of the data; the device is never asked.

transformers looks into position ids and padding masks at every forward pass to find out whether rows
are packed or padded, and so waits for the accelerator at every micro-batch. The job knows: packed
data always is, other data never; and a batch without padding gets no mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import masking_utils


def drop_needless_mask(batch: dict[str, Any]) -> None:
    """Take the attention mask out of a batch, still on the host, in which nothing is padded."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.numpy().all():
        del batch["attention_mask"]


@contextmanager
def decided_on_host(packing: bool) -> Iterator[None]:
    """Inside, rows count as packed if ``packing`` says so, and a mask means that there is padding."""
    find, skip = masking_utils.find_packed_sequence_indices, masking_utils._ignore_causal_mask_sdpa

    def documents(position_ids: torch.Tensor) -> torch.Tensor | None:
        if not packing:
            return None
        before = position_ids[:, :1] - 1
        return (torch.diff(position_ids, prepend=before, dim=-1) != 1).cumsum(-1)

    def skippable(padding_mask: torch.Tensor | None, *args: Any, **kwargs: Any) -> bool:
        return padding_mask is None and skip(padding_mask, *args, **kwargs)

    masking_utils.find_packed_sequence_indices = documents
    masking_utils._ignore_causal_mask_sdpa = skippable
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = find
        masking_utils._ignore_causal_mask_sdpa = skip
