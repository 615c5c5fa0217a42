"""The shapes in which people keep conversations, read into one."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from finetune_api.job.dataset import DataSource

Role = Literal["system", "user", "assistant"]
LossOn = Literal["Assistant", "Completion", "LastAssistant", "All"]
ROLES: tuple[str, ...] = get_args(Role)

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
}

STANFORD_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
STANFORD = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)
"""The prompts of the original Stanford Alpaca, letter by letter."""


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    content: str

    def to_template(self) -> dict[str, str]:
        """Return the message as chat templates take it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Conversation:
    """Turns that a chat template renders."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Pair:
    """Plain text: a prompt and what comes after it, no chat template in between."""

    prompt: str
    completion: str


Example = Conversation | Pair

_REASONING = ("reasoning", "reasoning_content", "reasoning_details", "thinking")
_UNSUPPORTED = ("tool_calls", "function_call", "tool_call_id", "train_detail", "mask")
"""Fields of a message that change what is to be learnt."""
_FLAGS = ("weight", "train", "loss")
"""Fields that say whether a message is to be learnt: fine where they say what is done anyway."""


class BadRow(Exception):
    """A row that does not have the shape of its format."""

    def __init__(self, code: str, message: str, fix: str) -> None:
        """Hold what a Problem needs."""
        self.code, self.message, self.fix = code, message, fix
        super().__init__(message)


@dataclass(frozen=True)
class Format:
    """One shape: its columns, what is trained by default, and how a row is read."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    loss_on: LossOn
    read: Callable[[dict[str, Any], bool, LossOn], Example]
    """Takes the columns by our names, whether Alpaca's original prompt is wanted, what is trained."""
    message: tuple[str, ...] = ()
    """The fields of a message that are read, where the first column holds messages."""


def _text(value: Any, where: str) -> str:
    if isinstance(value, str):
        text = value
    elif isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in value
    ):
        text = "".join(part["text"] for part in value)
    else:
        kind = "empty" if value is None else type(value).__name__
        raise BadRow("content-not-text", f"{where} is {kind}, not text", "write it as a string")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(
            "invalid-unicode", f"{where} holds half of a surrogate pair", "remove the character"
        ) from None
    return text


def _optional(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None else _text(value, name)


def _filled(value: Any) -> bool:
    """Return whether a field says something: 0 and false do, as weights and masks."""
    return value is not None and value not in ("", [], {})


def _refuse_fields(item: dict[str, Any], where: str, text_key: str) -> None:
    """Raise ``BadRow`` for what a message says beside its text and would be lost."""
    for key in _REASONING:
        if _filled(item.get(key)) and item[key] is not False:
            raise BadRow(
                "reasoning-not-supported",
                f"{where} has {key}, which is not supported",
                f"write it into {text_key} as the model does (<think>...</think>), or remove it",
            )
    for key in _UNSUPPORTED:
        if _filled(item.get(key)):
            raise BadRow(
                "unsupported-message-field",
                f"{where} has {key}, which is not supported",
                "remove the field or the row",
            )


def _refuse_flags(items: list[Any], turns: list[Message], column: str, loss_on: LossOn) -> None:
    """Raise ``BadRow`` for a message that says of itself other than what is trained."""
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    wanted = answers if loss_on == "Assistant" else answers[-1:]
    for number, item in enumerate(items):
        trained = loss_on == "All" or number in wanted
        for key in _FLAGS:
            value = item.get(key)
            if not _filled(value) or (isinstance(value, int | float) and value == trained):
                continue
            is_trained = "is" if trained else "is not"
            raise BadRow(
                "unsupported-message-field",
                f"{column}[{number}] has {key} {value!r:.40}, and with loss on {loss_on} it "
                f"{is_trained} trained",
                "remove the field or the row",
            )


def _turns(
    value: Any,
    keys: tuple[str, str, str],
    roles: dict[str, str],
    loss_on: LossOn,
) -> list[Message]:
    """Return the messages of a column; ``keys``: its name, and those of role and text."""
    column, role_key, text_key = keys
    if not isinstance(value, list):
        raise BadRow(
            "invalid-message",
            f"{column} is {type(value).__name__}, not a list",
            f'write [{{"{role_key}": ..., "{text_key}": ...}}, ...]',
        )
    turns = []
    flagged = False
    for number, item in enumerate(value):
        where = f"{column}[{number}]"
        if not isinstance(item, dict) or role_key not in item or text_key not in item:
            raise BadRow(
                "invalid-message",
                f"{where} has no {role_key} and {text_key}",
                f'write {{"{role_key}": ..., "{text_key}": ...}}',
            )
        if len(item) > 2:  # beside role and text
            _refuse_fields(item, where, text_key)
            flagged = flagged or any(key in item for key in _FLAGS)
        role = item[role_key]
        if not isinstance(role, str) or role not in roles:
            raise BadRow(
                "unknown-role",
                f"{where} has the role {role!r:.60}",
                f"roles: {' '.join(roles)}",
            )
        turns.append(Message(roles[role], _text(item[text_key], f"{where}.{text_key}")))
    if flagged:
        _refuse_flags(value, turns, column, loss_on)
    return turns


def _with_system(row: dict[str, Any], turns: list[Message]) -> Conversation:
    system = _optional(row, "system")
    if system:
        turns = [Message("system", system), *turns]
    return Conversation(tuple(turns))


def _messages(row: dict[str, Any], _: bool, loss_on: LossOn) -> Example:
    roles = {role: role for role in ROLES}
    keys = ("messages", "role", "content")
    return _with_system(row, _turns(row["messages"], keys, roles, loss_on))


def _sharegpt(row: dict[str, Any], _: bool, loss_on: LossOn) -> Example:
    keys = ("conversations", "from", "value")
    return _with_system(row, _turns(row["conversations"], keys, _SHAREGPT_ROLES, loss_on))


def _alpaca(row: dict[str, Any], stanford: bool, _: LossOn) -> Example:
    instruction = _text(row["instruction"], "instruction")
    output = _text(row["output"], "output")
    given = _optional(row, "input")
    if stanford:
        if _optional(row, "system"):
            raise BadRow(
                "system-not-in-stanford",
                "column system is filled, for which alpacaPrompt: Stanford has no place",
                "remove the column, or set dataset.alpacaPrompt: ChatTemplate",
            )
        prompt = STANFORD_WITH_INPUT if given.strip() else STANFORD
        return Pair(prompt.format(instruction=instruction, input=given), output)
    question = f"{instruction}\n\n{given}" if given.strip() else instruction
    return _with_system(row, [Message("user", question), Message("assistant", output)])


FORMATS = {
    form.name: form
    for form in (
        Format(
            "Messages",
            ("messages",),
            ("system", "tools"),
            "Assistant",
            _messages,
            ("role", "content"),
        ),
        Format(
            "ShareGPT",
            ("conversations",),
            ("system", "tools"),
            "Assistant",
            _sharegpt,
            ("from", "value"),
        ),
        Format(
            "Alpaca",
            ("instruction", "output"),
            ("input", "system", "history", "tools"),
            "Completion",
            _alpaca,
        ),
    )
}
"""What this release reads."""
_REFUSED_COLUMNS = ("tools", "history")


@dataclass(frozen=True)
class Reader:
    """How the rows of one source are read."""

    format: Format
    columns: dict[str, str]
    """Our name of each column to the name in the file."""
    stanford: bool
    detected: bool
    """The format was read off the first row."""

    def read(self, row: dict[str, Any], loss_on: LossOn) -> Example:
        """Return the example of a row that is trained on ``loss_on``; raises ``BadRow``."""
        ours: dict[str, Any] = {}
        for name in (*self.format.required, *self.format.optional):
            column = self.columns.get(name, name)
            if column in row:
                ours[name] = row[column]
            elif name in self.format.required:
                raise BadRow(
                    "missing-column",
                    f"no column {column} (columns: {_names(row)})",
                    f"add {column}, or name the column in dataset.train[].columns",
                )
        for name in _REFUSED_COLUMNS:
            if ours.get(name):
                raise BadRow(
                    "unsupported-column",
                    f"column {name} is filled, which is not supported",
                    "remove the column or the row",
                )
        return self.format.read(ours, self.stanford, loss_on)

    def ignored(self, row: dict[str, Any]) -> set[str]:
        """Return the fields that messages of a good row hold and that are not read."""
        if not self.format.message:
            return set()
        column = self.format.required[0]
        return {
            key
            for message in row[self.columns.get(column, column)]
            if len(message) > len(self.format.message)
            for key in message.keys() - self.format.message - {*_FLAGS, *_REASONING}
            if _filled(message[key])
        }


def _names(row: dict[str, Any]) -> str:
    names = sorted(map(str, row))
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "none"


def reader_for(source: DataSource, first: dict[str, Any], *, stanford: bool) -> Reader:
    """Choose how to read a source by what it says and by its first row.

    Raises ``BadRow`` when a column that every row needs is not where the source says, or no format
    fits.
    """
    columns = dict(source.columns or {})
    if source.format is not None and source.format not in FORMATS:
        raise BadRow(
            "format-not-supported",
            f"format {source.format} is not supported yet",
            f"formats: {' '.join(FORMATS)}",
        )
    forms = [FORMATS[source.format]] if source.format else list(FORMATS.values())
    needed = {name for form in forms for name in form.required}
    for ours, theirs in columns.items():
        if ours in needed and theirs not in first:
            raise unknown_column(ours, theirs, first)
    for form in forms:
        if source.format or all(columns.get(name, name) in first for name in form.required):
            _check_names(form, columns)
            return Reader(form, columns, stanford, detected=source.format is None)
    wanted = "; ".join(f"{f.name}: {', '.join(f.required)}" for f in FORMATS.values())
    raise BadRow(
        "unknown-column",
        f"no format has these columns: {_names(first)}",
        f"rename the columns, or map them with dataset columns ({wanted})",
    )


def unknown_column(ours: str, theirs: str, row: dict[str, Any]) -> BadRow:
    """Return what to say of a column that a source names and a row does not have."""
    close = difflib.get_close_matches(theirs, [str(name) for name in row], n=1)
    return BadRow(
        "unknown-column",
        f"no column {theirs} (columns: {_names(row)})",
        f"did you mean {close[0]}?" if close else f"correct dataset columns.{ours}",
    )


def _check_names(form: Format, columns: dict[str, str]) -> None:
    known = (*form.required, *form.optional)
    for ours in columns:
        if ours not in known:
            raise BadRow(
                "unknown-column",
                f"dataset columns names {ours}, which {form.name} does not have",
                f"columns of {form.name}: {', '.join(known)}",
            )
