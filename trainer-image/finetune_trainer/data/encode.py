"""Examples become documents: token ids with trained spans, at most ``maxLength`` long."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from finetune_api.problem import Problem
from finetune_trainer.data.check import DROP_FIX, Checked
from finetune_trainer.data.formats import BadRow, Pair
from finetune_trainer.data.mask import Range, Rendered, render, token_spans, unrolled
from finetune_trainer.data.template import ChatTemplate

BATCH = 512
Overlong = Literal["Truncate", "Drop", "Split", "Fail"]
Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Document:
    """One training row as the model sees it."""

    ids: Ids
    spans: tuple[Range, ...]

    @property
    def trained(self) -> int:
        """Tokens that are trained."""
        return sum(stop - start for start, stop in self.spans)


@dataclass(frozen=True)
class Encoded:
    """What became of one row: documents, or a problem, or nothing because it was too long."""

    row: Checked
    documents: tuple[Document, ...] = ()
    problem: Problem | None = None
    longest: int = 0
    """Tokens before anything was cut."""
    truncated: bool = False
    split: bool = False
    warnings: tuple[Problem, ...] = field(default=())


@dataclass(frozen=True)
class Encoder:
    """Everything that decides how a row becomes tokens."""

    tokenizer: Any
    template: ChatTemplate | None
    """None where no row needs one."""
    max_length: int
    overlong: Overlong
    unroll: bool

    def encode(self, rows: Iterable[Checked]) -> Iterator[Encoded]:
        """Yield what became of each row, in order; tokenised in batches of bounded size."""
        batch: list[Checked] = []
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH:
                yield from self._batch(batch)
                batch = []
        if batch:
            yield from self._batch(batch)

    def _batch(self, rows: list[Checked]) -> Iterator[Encoded]:
        rendered: list[list[Rendered] | BadRow] = []
        for row in rows:
            try:
                rendered.append(self._rendered(row))
            except BadRow as bad:
                rendered.append(bad)
        texts = [part.text for parts in rendered if isinstance(parts, list) for part in parts]
        tokens = iter(self._tokenised(texts))
        for row, parts in zip(rows, rendered, strict=True):
            if isinstance(parts, BadRow):
                yield Encoded(row, problem=_problem(row, parts))
            else:
                documents = [
                    Document(ids, tuple(token_spans(part.text, offsets, part.trained)))
                    for part, (ids, offsets) in zip(parts, tokens, strict=False)
                ]
                yield self._fitted(row, parts, self._with_prefix(row, documents))

    def _rendered(self, row: Checked) -> list[Rendered]:
        if isinstance(row.example, Pair):
            prompt, end = row.example.prompt, self.tokenizer.eos_token or ""
            text = prompt + row.example.completion + end
            start = 0 if row.loss_on == "All" else len(prompt)
            return [Rendered(text, ((start, len(text)),), bool(end))]
        assert self.template is not None
        messages = row.example.messages
        if not self.unroll or row.loss_on == "All":
            return [render(self.template, messages, row.loss_on)]
        turns = unrolled(messages)
        kept = turns if row.loss_on == "Assistant" else turns[-1:]
        return [render(self.template, turn, "LastAssistant") for turn in kept]

    def _tokenised(self, texts: list[str]) -> Iterator[tuple[Ids, Any]]:
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()  # a tokenizer file may bring its own
        backend.no_padding()
        for found in backend.encode_batch(texts, add_special_tokens=False):
            yield np.asarray(found.ids, dtype=np.uint32), found.offsets

    @cached_property
    def prefix(self) -> Ids:
        """Tokens that the tokenizer itself puts before plain text, such as ``<s>``."""
        ids = self.tokenizer("x", add_special_tokens=True)["input_ids"]
        plain = self.tokenizer("x", add_special_tokens=False)["input_ids"]
        before = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)
        return np.asarray(ids[:before], dtype=np.uint32)

    def _with_prefix(self, row: Checked, documents: list[Document]) -> list[Document]:
        """Plain text gets the tokens that a chat template would have written itself."""
        count = len(self.prefix)
        if not isinstance(row.example, Pair) or not count:
            return documents
        return [
            Document(
                np.concatenate([self.prefix, document.ids]),
                tuple(
                    (max(1, start + count - (start == 1 and row.loss_on == "All")), stop + count)
                    for start, stop in document.spans
                ),
            )
            for document in documents
        ]

    def _fitted(self, row: Checked, parts: list[Rendered], documents: list[Document]) -> Encoded:
        longest = max((len(document.ids) for document in documents), default=0)
        over = longest > self.max_length
        warnings = self._warnings(row, parts)
        if over and self.overlong == "Fail":
            bad = BadRow(
                "row-too-long",
                f"{longest:,} tokens, more than dataset.maxLength {self.max_length}",
                "shorten it, raise dataset.maxLength, or set dataset.overlong: Truncate",
            )
            return Encoded(row, problem=_problem(row, bad), longest=longest)
        if over and self.overlong == "Drop":
            documents = [d for d in documents if len(d.ids) <= self.max_length]
            if not documents:
                return Encoded(row, longest=longest, warnings=warnings)
        pieces = [
            piece
            for document in documents
            for piece in self._pieces(document)
            if piece.trained and len(piece.ids) > 1
        ]
        if not pieces:
            where = f" within the first {self.max_length} tokens" if over else ""
            bad = BadRow(
                "nothing-trained",
                f"no token to learn from{where}",
                f"shorten the prompt, raise dataset.maxLength, or {DROP_FIX}"
                if over
                else f"remove the row, or {DROP_FIX}",
            )
            return Encoded(row, problem=_problem(row, bad), longest=longest)
        return Encoded(
            row,
            tuple(pieces),
            longest=longest,
            truncated=over and self.overlong == "Truncate",
            split=over and self.overlong == "Split",
            warnings=warnings,
        )

    def _pieces(self, document: Document) -> Iterator[Document]:
        length = len(document.ids)
        stop = length if self.overlong == "Split" else min(length, self.max_length)
        for start in range(0, stop, self.max_length):
            yield cut(document, start, min(start + self.max_length, stop))

    @cached_property
    def _controls(self) -> re.Pattern[str] | None:
        tokens = self.template.control_tokens if self.template else ()
        return re.compile("|".join(map(re.escape, tokens))) if tokens else None

    def _warnings(self, row: Checked, parts: list[Rendered]) -> tuple[Problem, ...]:
        found = []
        if not all(part.ends_turns for part in parts):
            found.append(
                BadRow(
                    "end-of-turn-not-trained",
                    "an answer does not end with an end-of-turn token; "
                    "the model may not learn to stop",
                    "use a chat template that ends the turns of the assistant with one",
                )
            )
        if self._controls and not isinstance(row.example, Pair):
            for message in row.example.messages:
                hit = self._controls.search(message.content)
                if hit:
                    found.append(
                        BadRow(
                            "control-token-in-text",
                            f"the text holds {hit[0]}, which the tokenizer reads as control token",
                            "remove it from the text, unless it is meant",
                        )
                    )
                    break
        return tuple(_problem(row, bad, "warning") for bad in found)


def cut(document: Document, start: int, stop: int) -> Document:
    """Return a piece of a document with its spans; its first token is never trained."""
    spans = tuple(
        (max(a - start, 1), min(b, stop) - start)
        for a, b in document.spans
        if min(b, stop) - start > max(a - start, 1)
    )
    return Document(document.ids[start:stop], spans)


def _problem(row: Checked, bad: BadRow, severity: str = "error") -> Problem:
    return Problem(
        code=bad.code,
        message=bad.message[:900],
        fix=bad.fix[:1024],
        file=row.file,
        line=row.line,
        severity=severity,
    )
