"""``spec.dataset``: what is learnt, and how rows become tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.document import Document, Fraction, Word
from finetune_api.source import SecretKeyRef, Uri

Format = Literal[
    "Alpaca",
    "ShareGPT",
    "Messages",
    "PromptCompletion",
    "Text",
    "Preference",
    "Unpaired",
    "Labelled",
    "Tokens",
    "Spans",
]


class DataSource(Document):
    """One file or folder of rows."""

    uri: Uri
    format: Format | None = None
    """Absent: read off the columns of the first row, and said."""
    columns: Annotated[dict[Word, Word], Field(max_length=16)] | None = None
    """Our name of a column to the name in the file: ``{messages: conversations}``."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Passes over this source in one epoch."""
    max_rows: Annotated[int, Field(ge=1, le=10**12)] | None = None
    token_secret_ref: SecretKeyRef | None = None


class Validation(Document):
    """Rows that are held out, or sources of their own: exactly one of the two."""

    fraction: Annotated[float, Field(gt=0, le=0.5)] | None = None
    sources: Annotated[list[DataSource], Field(min_length=1, max_length=16)] | None = None


class Dataset(Document):
    """Training and validation data."""

    train: Annotated[list[DataSource], Field(min_length=1, max_length=64)]
    validation: Validation | None = None
    """Absent: 2 % of the rows and at most 1,000, none below 100 rows."""
    max_length: Annotated[int, Field(ge=8, le=1_048_576)] = 2048
    """Tokens of one sequence."""
    overlong: Literal["Truncate", "Drop", "Split", "Fail"] = "Truncate"
    packing: bool | None = None
    """Several rows in one sequence. Absent: on where it is proved for this model."""
    loss_on: Literal["Assistant", "Completion", "LastAssistant", "All"] | None = None
    """Which tokens are trained. Absent: Assistant for conversations, Completion for Alpaca and
    prompts with completions, All for text."""
    system_prompt: Annotated[str, StringConstraints(min_length=1, max_length=8192)] | None = None
    """For every row that has none."""
    chat_template: Annotated[str, StringConstraints(min_length=1, max_length=32768)] | None = None
    """A name (chatml, llama3, mistral, gemma) or a Jinja template. Absent: the tokenizer's own."""
    alpaca_prompt: Literal["ChatTemplate", "Stanford"] = "ChatTemplate"
    unroll_turns: bool = False
    """One row a turn, for templates that rewrite earlier turns."""
    invalid_rows: Literal["Fail", "Drop"] = "Fail"
    max_invalid_fraction: Fraction | None = None
    """With Drop: fail when more of the rows than this are invalid."""
