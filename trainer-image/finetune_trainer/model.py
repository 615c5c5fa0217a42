"""The base model and its tokenizer, loaded as the job says: precision, attention, checkpointing."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_api.resolved import StageConfig
from finetune_trainer import fetch
from finetune_trainer.errors import StageError
from finetune_trainer.hub import unavailable
from finetune_trainer.weights import check_loaded

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TINY_LAYERS = 2
TINY_PARAMETERS = 300_000_000
NARROW = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "head_dim": 16,
    "word_embed_proj_dim": 64,
    "ffn_dim": 96,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
"""Widths of the small model, for the names that an architecture has."""

_OF_THE_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})
"""What an ``OSError`` says of a file, and not of the storage that it lies on."""
_NUMBER = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust tell the number of an error: in its text alone."""


def display_name(config: StageConfig) -> str:
    """Return the model's name for people: the last part of its URI."""
    return config.job.spec.model.uri.rstrip("/").rpartition("/")[2]


def model_folder(config: StageConfig) -> Path:
    """Return the folder of the materialised base model.

    Prepare has no choices yet: there the model is materialised, which costs nothing the second
    time.
    """
    if config.choices is not None:
        return fetch.locate(config, config.choices.model_path)
    return fetch.locate(config, fetch.materialise(config).path_ref)


def load_tokenizer(config: StageConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer, with a pad token (the end token where it has none)."""
    from transformers import AutoTokenizer

    model = config.job.spec.model
    folder = fetch.tokenizer_folder(config, model_folder(config))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=model.remote_code
        )
    except MemoryError:
        raise
    except Exception as error:  # of a broken file its parsers raise what they like
        _raise_unread(error, folder)
        raise _tokenizer_refused(config, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer_refused(config: StageConfig, error: Exception) -> StageError:
    """Return the refusal (16) of a tokenizer whose files were read and cannot be used."""
    model = config.job.spec.model
    uri = model.tokenizer.uri if model.tokenizer else model.uri
    field = "spec.model.tokenizer.uri" if model.tokenizer else "spec.model.uri"
    said = str(error).partition("\n")[0].strip() or type(error).__name__
    if isinstance(error, ImportError):
        return unavailable(
            "tokenizer-library-missing",
            f"the tokenizer of {uri} needs a library that the trainer image does not have: {said}",
            "copy a tokenizer.json beside its files; where the library is installed, transformers "
            "writes one: AutoTokenizer.from_pretrained('FOLDER').save_pretrained('NEW')",
            field=field,
        )
    return unavailable(
        "tokenizer-broken",
        f"the tokenizer of {uri} cannot be loaded: {said}",
        "copy its files again",
        field=field,
    )


def _raise_unread(error: BaseException, folder: Path) -> None:
    """Raise the ``OSError`` of a storage that could not be read, where an error came from one.

    Another attempt may read it. What the libraries catch they raise anew, without its number.
    """
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) and before not in chain:
        chain.append(before)
    for cause in chain:
        known = cause if isinstance(cause, OSError) else _numbered(cause, folder)
        if known is not None and (known.errno or 0) > 0 and known.errno not in _OF_THE_FILE:
            raise known


def _numbered(error: BaseException, folder: Path) -> OSError | None:
    told = _NUMBER.search(str(error))
    return OSError(int(told[1]), os.strerror(int(told[1])), str(folder)) if told else None


def load_model_config(config: StageConfig) -> PretrainedConfig:
    """Return the model's configuration; raises ``StageError`` when the library knows no such kind."""
    from transformers import AutoConfig

    folder = model_folder(config)
    try:
        return AutoConfig.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=config.job.spec.model.remote_code,
        )
    except (ValueError, KeyError, OSError) as error:
        _raise_unread(error, folder)
        raise StageError(
            ExitCode.MODEL_UNAVAILABLE,
            Problem(
                code="model-architecture-unknown",
                message=f"{display_name(config)}: {str(error).splitlines()[0]}"[:1024],
                fix="use a model of an architecture that transformers has",
                field="spec.model.uri",
            ),
        ) from error


def load_dtype(config: StageConfig) -> torch.dtype:
    """Return the type in which the base is loaded.

    Trainable weights and optimizer state are fp32 in every strategy unless ``pureBf16``; a base
    that is frozen under an adapter is held in the type of the arithmetic.
    """
    import torch

    spec = config.job.spec
    precision = spec.training.precision
    if precision == "pureBf16":
        return torch.bfloat16
    if spec.method.kind == "full" or precision == "fp32":
        return torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float16


def load_model(config: StageConfig, *, device: str = "cpu") -> PreTrainedModel:
    """Return the base model, ready for ``methods.apply``.

    Under ZeRO-3 the caller keeps an ``HfDeepSpeedConfig`` alive, so that weights are divided while
    they are loaded, and leaves ``device`` alone. Raises ``StageError`` (16) when weights are missing.
    """
    model, told = read(config, model_folder(config))
    check_loaded(config.job.spec.model.uri, told)
    return model if device == "cpu" else model.to(device)


def read(
    config: StageConfig, folder: Path, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model with the weights of a folder, and what the library says of their names.

    ``options`` are further ones of ``from_pretrained``.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    spec = config.job.spec
    model_config = load_model_config(config)
    model, told = AutoModelForCausalLM.from_pretrained(
        folder,
        config=model_config,
        dtype=load_dtype(config),
        attn_implementation=attention(config, model_config),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=spec.model.remote_code,
        output_loading_info=True,
        **options,
    )
    model.config.use_cache = False
    if spec.training.gradient_checkpointing:
        # Without re-entrance the recomputation works under frozen inputs and keeps RNG state.
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model, told


def empty_model(config: StageConfig) -> PreTrainedModel:
    """Return the model's structure on the meta device: every module, no weights."""
    import torch

    with torch.device("meta"):
        model = _from_config(config, load_model_config(config), load_dtype(config))
    model.config.use_cache = False
    return model


def tiny(config: StageConfig) -> PreTrainedModel:
    """Return a random model of the job's architecture with two layers, narrow where that works.

    fp32, in evaluation mode, always the same weights. Where layers come in kinds, the two are the
    first of each of the first two kinds. Raises ``RuntimeError`` when none of at most
    ``TINY_PARAMETERS`` can be made.
    """
    import torch

    whole = load_model_config(config)
    failure: Exception | None = None
    for shrink in (_narrow, _shallow):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                small = shrink(whole)
                with torch.device("meta"):
                    size = sum(
                        p.numel() for p in _from_config(config, small, torch.float32).parameters()
                    )
                if size > TINY_PARAMETERS:
                    raise ValueError(f"two layers have {size:,} parameters")
                model = _from_config(config, small, torch.float32).eval()
                model.config.use_cache = False
                with torch.no_grad():
                    model(input_ids=torch.zeros(1, 4, dtype=torch.long))
            except Exception as error:  # any architecture may refuse a width in its own way
                failure = failure or error
                continue
            return model
    raise RuntimeError(f"no small {whole.model_type} could be made: {failure}") from failure


def _from_config(
    config: StageConfig, model_config: PretrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """Return a model with random weights."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(
        copy.deepcopy(model_config),
        dtype=dtype,
        attn_implementation=attention(config, model_config),
        trust_remote_code=config.job.spec.model.remote_code,
    )


def attention(config: StageConfig, model_config: PretrainedConfig) -> str:
    """Return the attention implementation: the one asked for.

    Where nobody asked for it and the architecture has no sdpa (Gemma 2, gpt-oss), eager. Raises
    ``StageError`` where a user asked for what the architecture does not have.
    """
    from transformers import AutoModelForCausalLM

    wanted = config.job.spec.model.attention
    kind = AutoModelForCausalLM._model_mapping.get(type(model_config), None)
    supported = bool(getattr(kind, "_supports_sdpa", True))
    if wanted != "sdpa" or supported:
        return wanted
    if config.job.origins.get("model.attention", "built-in") == "built-in":
        return "eager"
    raise StageError(
        ExitCode.INVALID_CONFIG,
        Problem(
            code="attention-not-supported",
            message=f"{display_name(config)} ({model_config.model_type}) has no sdpa attention",
            fix="leave spec.model.attention out, or set it to eager",
            field="spec.model.attention",
        ),
    )


def _shallow(whole: PretrainedConfig) -> PretrainedConfig:
    """Return the configuration with two layers and its own widths."""
    small = copy.deepcopy(whole)
    text = small.get_text_config()
    for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        if hasattr(text, name):
            setattr(text, name, TINY_LAYERS)
            break
    kinds = list(getattr(whole.get_text_config(), "layer_types", None) or [])
    if kinds:
        first = sorted({kind: kinds.index(kind) for kind in kinds}.values())[:TINY_LAYERS]
        keep = first if len(first) == TINY_LAYERS else range(TINY_LAYERS)
        _set(text, "layer_types", [kinds[i] for i in keep if i < len(kinds)])
    return small


def _narrow(whole: PretrainedConfig) -> PretrainedConfig:
    """Return the configuration with two narrow layers and a small vocabulary."""
    small = _shallow(whole)
    text: Any = small.get_text_config()
    heads = int(getattr(text, "num_attention_heads", 4))
    groups = int(getattr(text, "num_key_value_heads", None) or heads)
    values = {
        **NARROW,
        "num_key_value_heads": 4 if groups == heads else 1 if groups == 1 else 2,
        "vocab_size": min(int(text.vocab_size), 512),
    }
    for name, value in values.items():
        if isinstance(getattr(text, name, None), int):
            _set(text, name, value)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        for level in (small, text):
            if getattr(level, name, None) is not None:
                setattr(level, name, 0)
    return small


def _set(target: Any, name: str, value: Any) -> None:
    """Set a value of a configuration unless it is derived from others there."""
    with contextlib.suppress(AttributeError):
        setattr(target, name, value)
