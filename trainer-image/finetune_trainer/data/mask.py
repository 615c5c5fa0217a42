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

    The end-of-turn token of a trained turn belongs to it, what comes after that does not. Raises
    ``BadRow`` when the template refuses the row, rewrites the turns before one, or leaves out
    reasoning of what is trained.
    """
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if loss_on == "All":
        text = template.render(messages)
        for turn in turns:
            _require_reasoning(text, messages[turn])
        return Rendered(text, ((0, len(text)),))
    wanted = turns if loss_on == "Assistant" else turns[-1:]
    marked = _marked(template, messages, turns) if template.marked else None
    if marked:
        text, found = marked
        ranges = [_reaching(template, messages, text, each) for each in found if each[0] in wanted]
    else:
        text = template.render(messages)
        ranges = [_difference(template, messages, turn, text) for turn in wanted]
    for turn in wanted:
        trained = "".join(text[start:stop] for at, (start, stop) in ranges if at == turn)
        _require_reasoning(trained, messages[turn])
    closed = [_closed(template, messages[turn], text, span) for turn, span in ranges]
    # A second region of the same turn (an end-of-text token) says nothing about how it ends.
    ends = dict.fromkeys(wanted, False)
    for (turn, _), (_, has_end) in zip(ranges, closed, strict=True):
        ends[turn] |= has_end
    return Rendered(text, _merged([span for span, _ in closed]), all(ends.values()))


def _merged(spans: list[Range]) -> tuple[Range, ...]:
    """Return the spans in order, overlapping ones as one."""
    merged: list[Range] = []
    for start, stop in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return tuple(merged)


def _marked(
    template: ChatTemplate, messages: Sequence[Message], turns: list[int]
) -> tuple[str, list[tuple[int, Range]]] | None:
    """Return the marked regions by turn, or None where one is not around its answer.

    A region without an answer of its own, such as a last end-of-text token, belongs to the turn
    before it.
    """
    text, regions = template.render_marked(messages)
    found: list[tuple[int, Range]] = []
    left = list(turns)
    for start, stop in regions:
        if left and _holds(text[start:stop], messages[left[0]]):
            found.append((left.pop(0), (start, stop)))
        elif found and not left:
            found.append((found[-1][0], (start, stop)))
        else:
            return None
    return None if left else (text, found)


def _holds(text: str, message: Message) -> bool:
    """Tell whether a rendered turn holds the answer, or what is left of it after its reasoning."""
    answer = message.content.rpartition("</think>")[2]
    return "".join(answer.split()) in "".join(text.split())


def _require_reasoning(trained: str, message: Message) -> None:
    """Raise ``BadRow`` where a model would learn an answer without the reasoning before it.

    Only white space and the tags may differ: some templates write the first one into the prompt.
    """
    reasoning = message.content.rpartition("</think>")[0]
    if reasoning and _untagged(reasoning) not in _untagged(trained):
        raise BadRow(
            "template-drops-reasoning",
            "the chat template leaves the reasoning of an answer out",
            "choose another dataset.chatTemplate; where this one drops that of earlier answers "
            "alone, set dataset.unrollTurns: true; or remove the reasoning from the row",
        )


def _untagged(text: str) -> str:
    return "".join(text.replace("<think>", "").replace("</think>", "").split())


def _reaching(
    template: ChatTemplate, messages: Sequence[Message], text: str, found: tuple[int, Range]
) -> tuple[int, Range]:
    """Let a marked region that stops short of its turn's end-of-turn token reach to it.

    Only where a rendering up to this turn proves that what follows belongs to the turn.
    """
    turn, (start, stop) = found
    if text[start:stop].rstrip().endswith(template.control_tokens):
        return found
    after = text if turn == len(messages) - 1 else template.render(messages[: turn + 1])
    proved = text.startswith(after) and len(after) > stop
    if proved and text.startswith(template.control_tokens, stop):
        return turn, (start, len(after))
    return found


def _difference(
    template: ChatTemplate, messages: Sequence[Message], turn: int, text: str
) -> tuple[int, Range]:
    """Return the range of one turn, proved by two renderings of less."""
    before = template.render(messages[:turn], prompt=True)
    after = text if turn == len(messages) - 1 else template.render(messages[: turn + 1])
    if not after.startswith(before):
        raise _unstable(
            "set dataset.chatTemplate to one with {% generation %} markers, or to "
            "chatml where the model has its tokens"
        )
    if not text.startswith(after):
        raise _unstable("set dataset.unrollTurns: true")
    if not _holds(after[len(before) :], messages[turn]):
        raise BadRow(
            "template-drops-answer",
            "the chat template does not render the text of an answer",
            "choose another dataset.chatTemplate",
        )
    if template.prompts:
        return turn, (len(before), len(after))
    # Without a generation prompt the header of the turn is part of the difference.
    position = text.find(messages[turn].content.strip(), len(before), len(after))
    if position < 0:
        raise _unstable("use a template that honours add_generation_prompt")
    header = text[len(before) : position]
    return turn, (len(before) if not header.strip() else position, len(after))


def _unstable(fix: str) -> BadRow:
    return BadRow(
        "template-not-prefix-stable",
        "the chat template renders the turns before an answer in another way once it is there",
        fix,
    )


def _closed(template: ChatTemplate, message: Message, text: str, span: Range) -> tuple[Range, bool]:
    """Move the end of a turn to behind its end-of-turn token; tell whether there is one.

    The first run of control tokens after the answer ends the turn: nothing is generated after it.
    """
    start, stop = span
    answer = message.content.strip()
    position = text.rfind(answer, start, stop)
    if position >= 0:
        end = position + len(answer)
        end += len(text[end:stop]) - len(text[end:stop].lstrip())
        closing = _control_run(template, text, end, stop)
        if closing > end:
            return (start, closing), True
    body = text[start:stop].rstrip()
    if body.endswith(template.control_tokens):
        return (start, start + len(body)), True
    return span, False


def _control_run(template: ChatTemplate, text: str, start: int, stop: int) -> int:
    """Return where the control tokens end that stand at ``start`` without a gap."""
    while token := next((t for t in template.control_tokens if text.startswith(t, start)), None):
        if start + len(token) > stop:
            break
        start += len(token)
    return start


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
