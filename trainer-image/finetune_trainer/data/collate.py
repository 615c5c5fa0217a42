"""Sequences become tensors: labels, masks and position ids are made here and stored nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""Label of a token that is not trained."""


@dataclass(frozen=True)
class Collator:
    """Batches items of ``PreparedDataset``, padded on the right to the longest.

    With ``packing`` a batch has ``position_ids`` that start again at every document and no
    ``attention_mask``: an all-ones mask would silently switch attention between documents back on.
    Padding then counts as one more document. Without ``packing`` it has an ``attention_mask``.
    ``pad_token_id`` only fills up: nothing is ever decided by comparing with it.
    """

    pad_token_id: int | None
    packing: bool

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return int64 tensors ``input_ids``, ``labels``, the mask or positions, ``sample_ids``."""
        import torch

        shape = (len(items), max(len(item["input_ids"]) for item in items))
        input_ids = np.full(shape, self.pad_token_id or 0, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        extra = np.zeros(shape, dtype=np.int64)
        for row, item in enumerate(items):
            ids = np.asarray(item["input_ids"], dtype=np.int64)
            input_ids[row, : len(ids)] = ids
            for start, stop in item["spans"]:
                labels[row, start:stop] = ids[start:stop]
            starts = np.cumsum(item["lengths"]) - item["lengths"]
            labels[row, starts] = IGNORED  # nothing of its own document comes before it
            if self.packing:
                for start, length in zip(starts, item["lengths"], strict=True):
                    extra[row, start : start + length] = np.arange(length)
                extra[row, len(ids) :] = np.arange(shape[1] - len(ids))
            else:
                extra[row, : len(ids)] = 1
        return {
            "input_ids": torch.from_numpy(input_ids),
            "labels": torch.from_numpy(labels),
            "position_ids" if self.packing else "attention_mask": torch.from_numpy(extra),
            "sample_ids": torch.tensor([item["sample_id"] for item in items], dtype=torch.int64),
        }
