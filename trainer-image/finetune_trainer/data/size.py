"""How much room prepared data will take, estimated while the rows are checked.

By the text of the rows, not by the size of the files: those may be compressed, capped or escaped.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.job.dataset import Dataset
from finetune_trainer.data.check import Checked
from finetune_trainer.data.formats import Pair

TOKEN_BYTES = 4
TEXT_FACTOR = 1.5
"""Bytes written a byte of text: a token for some 3 bytes of text, and what belongs to it."""
DOCUMENT_TEXT = 64
TURN_TEXT = 32
"""Bytes of text that stand for what a template and the index add to a document and to a turn."""


@dataclass
class PreparedSize:
    """Bytes on the disk, counted up row by row."""

    dataset: Dataset
    bytes: int = 0

    def add(self, row: Checked) -> None:
        """Count the documents of one valid row."""
        most = int(TOKEN_BYTES * self.dataset.max_length + TEXT_FACTOR * DOCUMENT_TEXT)
        for text in texts(row, unroll=self.dataset.unroll_turns):
            size = int(TEXT_FACTOR * text)
            self.bytes += size if self.dataset.overlong == "Split" else min(size, most)


def texts(row: Checked, *, unroll: bool) -> list[int]:
    """Return the bytes of text of each document of a row: an unrolled turn repeats those before."""
    example = row.example
    if isinstance(example, Pair):
        return [DOCUMENT_TEXT + len(example.prompt.encode()) + len(example.completion.encode())]
    so_far, unrolled = DOCUMENT_TEXT, []
    for message in example.messages:
        so_far += TURN_TEXT + len(message.content.encode())
        if message.role == "assistant":
            unrolled.append(so_far)
    if not unroll or row.loss_on == "All":
        return [so_far]
    return unrolled if row.loss_on == "Assistant" else unrolled[-1:]
