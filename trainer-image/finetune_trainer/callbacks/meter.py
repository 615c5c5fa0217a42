"""What a rank consumes: sample ids and tokens, counted without touching an accelerator."""

from __future__ import annotations

from typing import Any

from finetune_trainer.masks import drop_needless_mask


class Meter:
    """Counts the batches of the step under way, and tokens since the last reading."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.sample_ids: list[int] = []
        """Of the optimizer step under way, on this rank."""
        self._tokens = 0

    def take(self, batches: list[dict[str, Any]]) -> None:
        """Note the micro-batches of one optimizer step and take the ids out of them.

        The tensors are still on the host, so that reading them waits for nothing. Padding does not
        count where a mask tells it.
        """
        self.sample_ids = []
        for batch in batches:
            ids = batch.pop("sample_ids", None)
            if ids is not None:
                self.sample_ids.extend(ids.tolist())
            mask = batch.get("attention_mask")
            self._tokens += batch["input_ids"].numel() if mask is None else int(mask.numpy().sum())
            drop_needless_mask(batch)

    def read(self) -> int:
        """Return the tokens since the last reading."""
        tokens, self._tokens = self._tokens, 0
        return tokens
