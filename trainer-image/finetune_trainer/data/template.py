"""Chat templates: the tokenizer's own, a named one, or Jinja from the job."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial
from typing import Any

from finetune_api.problem import Problem, Refused
from finetune_trainer.data.day import written
from finetune_trainer.data.formats import BadRow, Message

FIELD = "spec.dataset.chatTemplate"
NAMED = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ '<|begin_of_text|>' }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
        " + message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "mistral": (
        "{% if messages[0]['role'] == 'system' %}"
        "{% set system = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}"
        "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
        "{{ '<s>' }}{% for message in turns %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('user and assistant must alternate, the user first') }}{% endif %}"
        "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] | trim + '</s>' }}{% endif %}"
        "{% endfor %}"
    ),
    "gemma": (
        "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('system messages are not supported') }}{% endif %}"
        "{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('user and assistant must alternate, the user first') }}{% endif %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    ),
}
"""Jinja text of the templates that a job may name."""
NEEDED_TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": ("<s>", "</s>"),
    "gemma": ("<bos>", "<start_of_turn>", "<end_of_turn>"),
}
"""Tokens without which a named template would be split into letters."""
_CLOCK = "strftime_now"
_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatTemplate:
    """A template with what it needs to render, and the control tokens of its tokenizer."""

    text: str
    origin: str
    """For people: where the template comes from."""
    variables: dict[str, Any]
    control_tokens: tuple[str, ...]
    """Tokens that are one token wherever they stand, the longest first; never white space."""
    day: date | None = None
    """What is today in it; by the clock where None."""

    @property
    def dated(self) -> bool:
        """The template may write what day it is."""
        return _CLOCK in self.text

    @property
    def marked(self) -> bool:
        """The template says with generation markers what the model writes."""
        return bool(_MARKER.search(self.text))

    @cached_property
    def prompts(self) -> bool:
        """``add_generation_prompt`` changes what this template renders."""
        question = (Message("user", "x"),)
        try:
            return self.render(question, prompt=True) != self.render(question)
        except BadRow:
            return True

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """Return the text; raises ``BadRow`` when the template refuses the messages."""
        return self._render(messages, prompt=prompt, marked=False)[0]

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text and the character ranges between generation markers."""
        return self._render(messages, prompt=False, marked=True)

    def _render(
        self, messages: Sequence[Message], *, prompt: bool, marked: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import (
            _compile_jinja_template,
            render_jinja_template,
        )

        try:
            if self.dated and self.day is not None:
                # Variables are made plain data on their way: a clock can only be a global.
                clock = partial(written, self.day)
                _compile_jinja_template(self.text).globals[_CLOCK] = clock
            rendered: Any
            ranges: Any
            rendered, ranges = render_jinja_template(
                conversations=[[message.to_template() for message in messages]],
                chat_template=self.text,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marked,
                **self.variables,
            )
        except Exception as error:  # whatever a template that others wrote may raise
            raise BadRow(
                "template-refuses-row",
                f"the chat template refuses this row: {str(error) or type(error).__name__:.300}",
                "change the row, choose another dataset.chatTemplate, "
                "or set dataset.invalidRows: Drop with maxInvalidFraction: 0.01",
            ) from error
        return str(rendered[0]), [(start, stop) for start, stop in ranges[0]] if marked else []


def template_text(chosen: str | None, tokenizer: Any) -> tuple[str, str]:
    """Return the Jinja text for ``dataset.chatTemplate`` and where it comes from.

    Raises ``Refused`` when there is none, the name is unknown, or the text is no template.
    """
    if chosen is None:
        try:
            return str(tokenizer.get_chat_template()), "the tokenizer's own"
        except ValueError:
            raise _refused(
                "no-chat-template",
                "the tokenizer has no chat template",
                f"set dataset.chatTemplate: {', '.join(NAMED)}, or a Jinja template",
            ) from None
    if chosen in NAMED:
        missing = [token for token in NEEDED_TOKENS[chosen] if not _is_token(token, tokenizer)]
        if missing:
            raise _refused(
                "template-token-missing",
                f"template {chosen} needs {missing[0]}, which is no token of this model",
                _fitting(tokenizer),
            )
        return NAMED[chosen], f"built-in {chosen}"
    if "{{" not in chosen and "{%" not in chosen:
        close = difflib.get_close_matches(chosen.lower(), NAMED, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise _refused(
            "unknown-chat-template",
            f"{chosen[:60]!r} is neither the name of a chat template nor Jinja",
            f"{hint}names: {' '.join(NAMED)}",
        )
    return chosen, "from the job"


def load_template(chosen: str | None, tokenizer: Any) -> ChatTemplate:
    """Return the template to use, compiled once so that a syntax error shows at the start."""
    import jinja2
    from transformers.utils.chat_template_utils import _compile_jinja_template

    text, origin = template_text(chosen, tokenizer)
    try:
        _compile_jinja_template(text)
    except jinja2.TemplateSyntaxError as error:
        raise _refused(
            "invalid-chat-template",
            f"the chat template is not valid Jinja: {error.message} (line {error.lineno})",
            "correct the template",
        ) from error
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    tokens |= {str(token) for token in tokenizer.all_special_tokens}
    return ChatTemplate(
        text=text,
        origin=origin,
        variables=dict(tokenizer.special_tokens_map),
        control_tokens=tuple(
            sorted((token for token in tokens if token.strip()), key=lambda t: (-len(t), t))
        ),
    )


def _is_token(token: str, tokenizer: Any) -> bool:
    return len(tokenizer.encode(token, add_special_tokens=False)) == 1


def _fitting(tokenizer: Any) -> str:
    fitting = [
        name
        for name, tokens in NEEDED_TOKENS.items()
        if all(_is_token(token, tokenizer) for token in tokens)
    ]
    if tokenizer.chat_template:
        return "leave dataset.chatTemplate out: the tokenizer has its own"
    return f"templates that fit: {' '.join(fitting)}" if fitting else "write a Jinja template"


def _refused(code: str, message: str, fix: str) -> Refused:
    return Refused(Problem(code=code, message=message, fix=fix, field=FIELD))
