"""Prompts for the proof of a published model, taken from the job's own prepared data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.names import Layout
from finetune_api.resolved import StageConfig
from finetune_trainer.data import cache

PROMPTS = 16
LONGEST = 256
"""Tokens of a prompt; of a longer one the last are taken."""
DOCUMENTS = 64
"""Documents that are looked at for how an answer ends."""
LAST = 3
"""An answer's end-of-turn token is among its last so many (a template may add a line break)."""

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Water boils at a lower temperature on a mountain.",
    "Once upon a time there was a miller who had three sons.",
    "To be, or not to be, that is the question:",
    "def add(a, b):\n    return a + b\n",
    '{"name": "Ada", "born": 1815}',
    "1, 1, 2, 3, 5, 8, 13, 21,",
    "The capital of France is",
    "Die Katze sitzt auf dem Dach und wartet.",
    "Il pleut sur la ville et sur les champs.",
    "Dear customer, thank you for your message.",
    "SELECT name FROM people WHERE age > 30 ORDER BY name;",
    "What is the difference between a lake and a sea?",
    "First, melt the butter. Then stir in the flour.",
    "In the beginning of the year the river was frozen.",
    "Yes. No. Perhaps, but only if the weather holds.",
)
"""Where a job has fewer documents than ``PROMPTS``."""


@dataclass(frozen=True)
class Proof:
    """What a model is verified with."""

    inputs: list[list[int]]
    """Whole documents, cut to ``LONGEST``: logits are compared on these."""
    questions: list[list[int]]
    """Documents up to their first trained token: generation starts from these."""
    answer_length: int
    """Tokens of the longest trained answer among the questions."""
    end_tokens: list[int]
    """Control tokens with which trained answers end, the most frequent first."""


def proof(config: StageConfig, tokenizer: Any) -> Proof:
    """Return prompts of the validation data, then of the training data, then plain sentences."""
    documents = _documents(config)
    inputs, questions, longest = [], [], 1
    for ids, spans in documents[:PROMPTS]:
        inputs.append(ids[:LONGEST])
        if spans and spans[0][0] > 0:
            questions.append(ids[: spans[0][0]][-LONGEST:])
            longest = max(longest, spans[0][1] - spans[0][0])
    missing = PROMPTS - len(inputs)
    inputs += [tokenizer.encode(text)[:LONGEST] for text in SENTENCES[: max(0, missing)]]
    return Proof(inputs, questions, longest, _ends(documents, tokenizer))


def _documents(config: StageConfig) -> list[tuple[list[int], list[list[int]]]]:
    """Return (ids, spans) of the first documents, validation before training."""
    assert config.choices is not None
    prepared = Layout(Path(config.mounts.workspace)).prepared
    folder = cache.folder_of(prepared, config.choices.fingerprint)
    found: list[tuple[list[int], list[list[int]]]] = []
    for split in ("validation", "train"):
        if not (folder / split).is_dir():
            continue
        rows = cache.PreparedDataset(folder / split)
        for index in range(min(len(rows), DOCUMENTS)):
            for number in rows.documents(index):
                ids, spans = rows.document(int(number))
                found.append((ids.tolist(), spans.tolist()))
            if len(found) >= DOCUMENTS:
                return found[:DOCUMENTS]
    return found


def _ends(documents: list[tuple[list[int], list[list[int]]]], tokenizer: Any) -> list[int]:
    """Return the control tokens that end trained answers; the tokenizer's end where none does."""
    control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    counts: Counter[int] = Counter()
    for ids, spans in documents:
        for start, end in spans:
            last = [token for token in ids[max(start, end - LAST) : end] if token in control]
            counts.update(last[-1:])
    ends = [token for token, count in counts.most_common() if 4 * count >= counts.total()]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        ends.append(tokenizer.eos_token_id)
    return ends
