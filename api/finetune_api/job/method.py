"""``spec.method``: which weights are trained. Exactly one of the fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.document import Document, Word

Rank = Annotated[int, Field(ge=1, le=8192)]
Modules = Annotated[list[Word], Field(min_length=1, max_length=256)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
TargetModules = Pattern | Modules
"""A list of module names, ``all-linear``, or a regular expression over full names."""
VirtualTokens = Annotated[int, Field(ge=1, le=4096)]


class Full(Document):
    """Every weight is trained."""


class Lora(Document):
    """Low-rank adapters (arXiv:2106.09685), with the parameters of peft's ``LoraConfig``."""

    r: Rank = 16
    alpha: Annotated[float, Field(gt=0, le=65536)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    target_modules: TargetModules = "all-linear"
    """Absent: all linear layers but the output layer and routers."""
    exclude_modules: TargetModules | None = None
    target_parameters: Modules | None = None
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: Modules | None = None
    """Modules that are trained in full beside the adapter."""
    init_lora_weights: Annotated[
        str,
        StringConstraints(
            pattern=r"^(gaussian|eva|olora|pissa|pissa_niter_[0-9]{1,3}|corda|loftq|orthogonal|mica|default)$",
            max_length=32,
        ),
    ] = "default"
    layers_to_transform: (
        Annotated[list[Annotated[int, Field(ge=0, le=4096)]], Field(min_length=1, max_length=512)]
        | None
    ) = None
    layers_pattern: Modules | None = None
    rank_pattern: Annotated[dict[Pattern, Rank], Field(max_length=64)] | None = None
    alpha_pattern: (
        Annotated[dict[Pattern, Annotated[float, Field(gt=0, le=65536)]], Field(max_length=64)]
        | None
    ) = None
    trainable_token_indices: (
        Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=1024)] | None
    ) = None
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    layer_replication: (
        Annotated[
            list[
                Annotated[
                    list[Annotated[int, Field(ge=0, le=4096)]], Field(min_length=2, max_length=2)
                ]
            ],
            Field(min_length=1, max_length=64),
        ]
        | None
    ) = None
    ensure_weight_tying: bool = False


class Houlsby(Document):
    """Bottleneck adapters after attention and MLP (arXiv:1902.00751)."""

    bottleneck: Rank = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class PrefixTuning(Document):
    """Trained key and value prefixes in every layer (arXiv:2101.00190)."""

    num_virtual_tokens: VirtualTokens = 20
    prefix_projection: bool = False
    encoder_hidden_size: Rank | None = None


class PromptTuning(Document):
    """Trained input embeddings (arXiv:2104.08691)."""

    num_virtual_tokens: VirtualTokens = 20
    init_text: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None


class PTuning(Document):
    """Input embeddings from a trained prompt encoder (arXiv:2103.10385)."""

    num_virtual_tokens: VirtualTokens = 20
    encoder: Literal["MLP", "LSTM"] = "MLP"
    encoder_hidden_size: Rank | None = None


class Method(Document):
    """Exactly one of the fields."""

    full: Full | None = None
    lora: Lora | None = None
    houlsby: Houlsby | None = None
    prefix_tuning: PrefixTuning | None = None
    prompt_tuning: PromptTuning | None = None
    p_tuning: PTuning | None = None

    @property
    def kind(self) -> str:
        """The name of the method that was chosen, as it is spelled in the object."""
        return next(iter(self.to_json()))
