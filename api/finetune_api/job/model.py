"""``spec.model``: the base model, its tokenizer and how it is loaded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.document import Document, Word
from finetune_api.source import SecretKeyRef, Uri

Task = Literal[
    "CausalLM",
    "SequenceClassification",
    "Seq2SeqLM",
    "TokenClassification",
    "QuestionAnswering",
    "FeatureExtraction",
]
Scalar = Annotated[str, Field(max_length=1024)] | int | float | bool


class Reference(Document):
    """Another place to read from."""

    uri: Uri


class ModelSource(Document):
    """The base model."""

    uri: Uri
    """hf://owner/name, modelscope://owner/name, pvc://claim/path, or job://name: its output."""
    revision: Word | None = None
    """Branch, tag or commit on a hub; it is resolved to a commit once, when the job is prepared."""
    endpoint: (
        Annotated[str, StringConstraints(pattern=r"^https?://\S+$", max_length=512)] | None
    ) = None
    """A mirror of the hub."""
    token_secret_ref: SecretKeyRef | None = None
    tokenizer: Reference | None = None
    """Absent: the model's own."""
    adapter: Reference | None = None
    """An adapter to start from, merged into the base before training."""
    initialization: Literal["Pretrained", "FromConfig"] = "Pretrained"
    """FromConfig: random weights of the model's config, for pretraining from scratch."""
    config_overrides: Annotated[dict[Word, Scalar], Field(max_length=32)] | None = None
    """Values of the model's config to replace, with FromConfig."""
    task: Task = "CausalLM"
    attention: Literal[
        "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"
    ] = "sdpa"
    quantization: Literal["int8", "nf4"] | None = None
    """Absent: none."""
    remote_code: bool = False
    """Run Python code that comes with the model; a profile has to allow it."""
    add_tokens: Annotated[list[Word], Field(max_length=256)] | None = None
    """Tokens to add to the vocabulary; their embeddings are trained."""
