"""Which characters of a rendered conversation are trained, and which tokens these are.

In order: generation markers of the template; else the difference of two renderings, proved for
the row; else the row is refused. Masks are found on the text and carried over to tokens by their
offsets, so that the token ids are exactly those of the whole text, and no id is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_trainer.data.formats import BadRow, LossOn, Message
from finetune_trainer.data.template import ChatTemplate

Range = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """Text of one training row and the half-open character ranges that are trained."""

    text: str
    trained: tuple[Range, ...]
    ends_turns: bool = True
    """Every trained turn ends with a control token."""


def unrolled(messages: Sequence[Message]) -> list[tuple[Message, ...]]:
    """Return one conversation a turn of the assistant; each ends with that turn."""
    return [
        tuple(messages[: index + 1])
        for index, message in enumerate(messages)
        if message.role == "assistant"
    ]


def render(template: ChatTemplate, messages: Sequence[Message], loss_on: LossOn) -> Rendered:
    """Render a conversation and find what is trained.

    The end-of-turn token of a trained turn belongs to it, white space after that does not. Raises
    ``BadRow`` when the template refuses the row or rewrites the turns before one.
    """
    if loss_on == "All":
        text = template.render(messages)
        return Rendered(text, ((0, len(text)),))
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if loss_on in {"Completion", "LastAssistant"}:
        turns = turns[-1:]
    marked = _marked(template, messages, loss_on) if template.marked else None
    if marked:
        text, ranges = marked
    else:
        text = template.render(messages)
        ranges = [_difference(template, messages, turn, text) for turn in turns]
    closed = [_closed(template, text, start, stop) for start, stop in ranges]
    return Rendered(text, tuple(r for r, _ in closed), all(ends for _, ends in closed))


def _marked(
    template: ChatTemplate, messages: Sequence[Message], loss_on: LossOn
) -> tuple[str, list[Range]] | None:
    """Return what the markers say, or None where they are not around the assistant's words."""
    text, ranges = template.render_marked(messages)
    answers = [message.content.strip() for message in messages if message.role == "assistant"]
    if len(ranges) != len(answers) or any(
        answer not in text[start:stop]
        for answer, (start, stop) in zip(answers, ranges, strict=True)
    ):
        return None
    return text, ranges if loss_on == "Assistant" else ranges[-1:]


def _difference(template: ChatTemplate, messages: Sequence[Message], turn: int, text: str) -> Range:
    """Return the range of one turn, proved by two renderings of less."""
    before = template.render(messages[:turn], prompt=True)
    after = text if turn == len(messages) - 1 else template.render(messages[: turn + 1])
    if not (after.startswith(before) and text.startswith(after)):
        raise BadRow(
            "template-not-prefix-stable",
            "the chat template renders the turns before an answer in another way once it is there",
            "set dataset.unrollTurns: true",
        )
    if template.prompts:
        return len(before), len(after)
    # Without a generation prompt the header of the turn is part of the difference.
    answer = messages[turn].content.strip()
    position = text.find(answer, len(before), len(after))
    if position < 0:
        raise BadRow(
            "template-not-prefix-stable",
            "the chat template has no generation prompt and changes the text of the answer",
            "use a template that honours add_generation_prompt",
        )
    header = text[len(before) : position]
    return (len(before) if not header.strip() else position), len(after)


def _closed(template: ChatTemplate, text: str, start: int, stop: int) -> tuple[Range, bool]:
    """Move the end of a turn to behind its end-of-turn token; tell whether there is one."""
    body = text[start:stop].rstrip()
    if body.endswith(template.control_tokens):
        return (start, start + len(body)), True
    following = next((t for t in template.control_tokens if text.startswith(t, stop)), None)
    if following:
        return (start, stop + len(following)), True
    return (start, stop), False


def token_spans(text: str, offsets: Any, trained: Sequence[Range]) -> list[Range]:
    """Return the half-open token ranges that lie within character ranges.

    ``offsets`` [n, 2] are the characters of each token. A token that reaches over a border counts
    only if what lies beyond is white space. Token 0 never counts: nothing predicts it.
    """
    table: npt.NDArray[np.int64] = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = table[:, 0].copy(), np.maximum.accumulate(table[:, 1])
    empty = starts >= table[:, 1]  # its characters were trimmed off by the tokenizer
    starts[empty] = np.concatenate([[0], ends[:-1]])[empty]
    spans = []
    for start, stop in trained:
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(starts, stop, side="left"))
        if first < last and starts[first] < start and text[starts[first] : start].strip():
            first += 1
        if first < last and ends[last - 1] > stop and text[stop : ends[last - 1]].strip():
            last -= 1
        first = max(first, 1)
        if first < last:
            spans.append((first, last))
    return spans
