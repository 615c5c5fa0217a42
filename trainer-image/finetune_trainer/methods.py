"""Which weights are trained: one row a method, and what can be checked before any are loaded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from finetune_api.exit_codes import ExitCode
from finetune_api.job.method import Lora
from finetune_api.problem import Problem
from finetune_api.resolved import StageConfig
from finetune_trainer.errors import StageError
from finetune_trainer.model import display_name, empty_model

if TYPE_CHECKING:
    from torch import nn

ALL_LINEAR = "all-linear"
ROUTERS = frozenset({"gate", "router", "shared_expert_gate", "wg"})
"""Path components of the layers that choose experts: an adapter there upsets the balance."""
PLAIN_INITIALISATIONS = frozenset({"default", "gaussian", "orthogonal"})
"""Initialisations that leave the base alone, so that the adapter's file is all there is to save."""


@dataclass(frozen=True)
class Row:
    """One method.

    ``apply`` marks or adds the trainable weights. ``state`` returns what training changes outside
    the trained weights and ``restore`` puts it back; both are exact inverses. Full fine-tuning and
    LoRA with a plain initialisation keep nothing there: every changed tensor is a parameter of the
    model (adapters and ``modulesToSave`` included) and is saved with it.
    """

    apply: Callable[[Any, StageConfig], Any]
    state: Callable[[Any], dict[str, Any]]
    restore: Callable[[Any, dict[str, Any]], None]


@dataclass(frozen=True)
class Counts:
    """Parameters of a model, by whether they are trained. Tied weights count once."""

    trainable: int
    total: int


def apply(model: Any, config: StageConfig) -> Any:
    """Return the model with the job's method applied.

    Trainable weights are fp32 unless ``pureBf16``. New weights depend on the job's seed alone, so
    that every rank and every attempt starts from the same.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.job.spec.training.seed)
        return _row(config).apply(model, config)


def structure(config: StageConfig) -> Any:
    """Return the model with the method applied, on the meta device: everything but the numbers."""
    import torch

    with torch.device("meta"):
        return apply(empty_model(config), config)


def state(model: Any, config: StageConfig) -> dict[str, Any]:
    """Return what the method keeps outside the trained weights."""
    return _row(config).state(model)


def restore(model: Any, config: StageConfig, saved: dict[str, Any]) -> None:
    """Put back what ``state`` returned."""
    _row(config).restore(model, saved)


def _row(config: StageConfig) -> Row:
    """Return the row of the job's method."""
    kind = config.job.spec.method.kind
    if kind not in ROWS:
        raise StageError(
            ExitCode.INVALID_CONFIG,
            Problem(
                code="not-supported-yet",
                message=f"method {kind} is not supported yet",
                fix="use lora or full",
                field=f"spec.method.{kind}",
            ),
        )
    return ROWS[kind]


def counts(model: nn.Module) -> Counts:
    """Return how many parameters are trained and how many there are.

    A weight that ZeRO-3 has divided counts with its full size.
    """
    sizes = [(int(getattr(p, "ds_numel", p.numel())), p.requires_grad) for p in model.parameters()]
    return Counts(
        trainable=sum(n for n, trained in sizes if trained), total=sum(n for n, _ in sizes)
    )


# --- rows ---------------------------------------------------------------------------------------


def _full(model: Any, config: StageConfig) -> Any:
    """Train every weight."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    _to_training_type(model, config)
    return model


def _lora(model: Any, config: StageConfig) -> Any:
    """Add low-rank adapters with peft; everything else is frozen."""
    import peft

    spec = config.job.spec
    assert spec.method.lora is not None
    _refuse_initialisation(spec.method.lora)
    pure = spec.training.precision == "pureBf16"
    wrapped = peft.get_peft_model(
        model,
        peft_config(spec.method.lora, model),
        autocast_adapter_dtype=not pure,
        low_cpu_mem_usage=any(p.is_meta for p in model.parameters()),
    )
    # A resume loads the adapter through this, and would make it fp32.
    wrapped.load_adapter = partial(wrapped.load_adapter, autocast_adapter_dtype=not pure)
    _to_training_type(wrapped, config)
    return wrapped


def _to_training_type(model: nn.Module, config: StageConfig) -> None:
    """Give trainable weights the type that the optimizer steps in.

    ZeRO-3 has divided the weights of the base already; those were loaded in the right type.
    """
    import torch

    pure = config.job.spec.training.precision == "pureBf16"
    wanted = torch.bfloat16 if pure else torch.float32
    for parameter in model.parameters():
        if (
            parameter.requires_grad
            and parameter.dtype != wanted
            and not hasattr(parameter, "ds_id")
        ):
            parameter.data = parameter.data.to(wanted)


def _nothing(model: Any) -> dict[str, Any]:
    """Return the empty state: the method keeps nothing outside the trained weights."""
    return {}


def _expect_nothing(model: Any, saved: dict[str, Any]) -> None:
    """Refuse a state that this method never wrote."""
    if saved:
        raise ValueError(f"unexpected state of a method: {sorted(saved)}")


ROWS: dict[str, Row] = {
    "full": Row(_full, _nothing, _expect_nothing),
    "lora": Row(_lora, _nothing, _expect_nothing),
}


def _refuse_initialisation(lora: Lora) -> None:
    """Refuse initialisations that change the base: a resume would rebuild another model."""
    if lora.init_lora_weights not in PLAIN_INITIALISATIONS:
        raise StageError(
            ExitCode.INVALID_CONFIG,
            Problem(
                code="not-supported-yet",
                message=f"initLoraWeights {lora.init_lora_weights} is not supported yet: it keeps "
                "state outside the adapter",
                fix="use default, gaussian or orthogonal",
                field="spec.method.lora.initLoraWeights",
            ),
        )


def peft_config(lora: Lora, model: Any) -> Any:
    """Return peft's ``LoraConfig`` of the job's parameters, every one of them."""
    import peft

    target: Any = lora.target_modules
    if target == ALL_LINEAR:
        # Under layerReplication names do not change, only how often they occur.
        target = linear_targets(model) or None
    init: Any = True if lora.init_lora_weights == "default" else lora.init_lora_weights
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias=lora.bias,
        target_modules=target,
        exclude_modules=lora.exclude_modules or _router_pattern(target, model),
        target_parameters=lora.target_parameters,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        modules_to_save=lora.modules_to_save,
        init_lora_weights=init,
        layers_to_transform=lora.layers_to_transform,
        layers_pattern=lora.layers_pattern,
        rank_pattern=lora.rank_pattern or {},
        alpha_pattern=lora.alpha_pattern or {},
        trainable_token_indices=lora.trainable_token_indices,
        lora_bias=lora.lora_bias,
        fan_in_fan_out=lora.fan_in_fan_out,
        layer_replication=[tuple(pair) for pair in lora.layer_replication]
        if lora.layer_replication
        else None,
        ensure_weight_tying=lora.ensure_weight_tying,
    )


def _router_pattern(target: Any, model: Any) -> str | None:
    """Return what keeps target names from reaching routers; None where they reach none."""
    names = set(target) if isinstance(target, list) else set()
    reached = any(
        ROUTERS.intersection(name.split(".")) and name.rpartition(".")[2] in names - ROUTERS
        for name, _ in model.named_modules()
    )
    return r"(.*\.)?(" + "|".join(sorted(ROUTERS)) + r")(\..*)?" if reached else None


# --- targets ------------------------------------------------------------------------------------


def linear_names(model: Any) -> list[str]:
    """Return the full names of all linear layers but the output layer and routers, in order."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not output
        and not ROUTERS.intersection(name.split("."))
    ]


def linear_targets(model: Any) -> list[str]:
    """Return the last parts of ``linear_names``, each once, in the model's order."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in linear_names(model)))


def check_targets(config: StageConfig) -> list[Problem]:
    """Return what the job's LoRA names that the model does not have; empty for other methods.

    Needs the model's configuration only: the structure is built on the meta device.
    """
    lora = config.job.spec.method.lora
    if lora is None:
        return []
    model = empty_model(config)
    modules = dict(model.named_modules())
    check = partial(_unmatched, modules=modules, model=model, of=display_name(config))
    problems = [
        *check(lora.target_modules, "targetModules"),
        *check(lora.modules_to_save or [], "modulesToSave"),
        *check(lora.exclude_modules or [], "excludeModules"),
        *_unmatched_parameters(lora, model, display_name(config)),
        *_bad_indices(lora, config, model),
    ]
    if not problems:
        problems += _untrainable(config, model)
    return problems


def _unmatched(
    wanted: str | list[str],
    field: str,
    *,
    modules: dict[str, nn.Module],
    model: Any,
    of: str,
) -> Iterable[Problem]:
    """Yield a problem for each name or expression that matches no module."""
    if wanted == ALL_LINEAR and field == "targetModules":
        if not linear_names(model):
            yield _not_found(field, wanted, of, model, index=None)
        return
    if isinstance(wanted, str):
        try:
            expression = re.compile(wanted)
        except re.error as error:
            yield Problem(
                code="target-not-a-pattern",
                message=f'{field} "{wanted}" is not a regular expression: {error}',
                fix=f'for one module name write a list: ["{wanted}"]',
                field=f"spec.method.lora.{field}",
            )
            return
        if not any(expression.fullmatch(name) for name in modules):
            yield _not_found(field, wanted, of, model, index=None)
        return
    for index, name in enumerate(wanted):
        if not any(full == name or full.endswith(f".{name}") for full in modules):
            yield _not_found(field, name, of, model, index=index)


def _not_found(field: str, name: str, of: str, model: Any, *, index: int | None) -> Problem:
    """Return the problem of a name that matches nothing, with the nearest that does."""
    linear = linear_targets(model)
    every = dict.fromkeys(full.rpartition(".")[2] for full, _ in model.named_modules() if full)
    names = linear if field == "targetModules" else [n for n in every if not n.isdigit()]
    near = difflib.get_close_matches(name.rpartition(".")[2], names, n=1)
    what = "linear modules" if field == "targetModules" else "modules"
    return Problem(
        code="target-not-found",
        message=f'{field} "{name}" matches no module of {of}',
        fix=((f"did you mean {near[0]}? " if near else "") + f"{what}: {' '.join(names)}")[:1024],
        field=f"spec.method.lora.{field}" + ("" if index is None else f"[{index}]"),
    )


def _unmatched_parameters(lora: Lora, model: Any, of: str) -> Iterable[Problem]:
    """Yield a problem for each target parameter that the model does not have."""
    names = [name for name, _ in model.named_parameters()]
    for index, wanted in enumerate(lora.target_parameters or []):
        if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
            ends = list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in names))
            near = difflib.get_close_matches(wanted, ends, n=1)
            yield Problem(
                code="target-not-found",
                message=f'targetParameters "{wanted}" matches no parameter of {of}',
                fix=(f"did you mean {near[0]}? " if near else "") + "name it as module.parameter",
                field=f"spec.method.lora.targetParameters[{index}]",
            )


def _bad_indices(lora: Lora, config: StageConfig, model: Any) -> Iterable[Problem]:
    """Yield a problem for layers and tokens that are beyond the model."""
    text = model.config.get_text_config()
    layers, vocabulary = int(text.num_hidden_layers), int(text.vocab_size)
    of = display_name(config)
    for index, layer in enumerate(lora.layers_to_transform or []):
        if layer >= layers:
            yield Problem(
                code="layer-out-of-range",
                message=f"layersToTransform {layer}: {of} has {layers} layers",
                fix=f"use 0 to {layers - 1}",
                field=f"spec.method.lora.layersToTransform[{index}]",
            )
    for index, (start, end) in enumerate(lora.layer_replication or []):
        if not start < end <= layers:
            yield Problem(
                code="layer-out-of-range",
                message=f"layerReplication [{start}, {end}]: {of} has {layers} layers",
                fix=f"use ranges with start < end and end at most {layers}",
                field=f"spec.method.lora.layerReplication[{index}]",
            )
    for index, token in enumerate(lora.trainable_token_indices or []):
        if token >= vocabulary:
            yield Problem(
                code="token-out-of-range",
                message=f"trainableTokenIndices {token}: the vocabulary of {of} has {vocabulary}",
                fix=f"use 0 to {vocabulary - 1}",
                field=f"spec.method.lora.trainableTokenIndices[{index}]",
            )


def _untrainable(config: StageConfig, model: Any) -> Iterable[Problem]:
    """Yield the problem that peft has with the whole configuration, found without weights."""
    try:
        wrapped = structure(config)
    except StageError as error:
        yield from error.problems
        return
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        yield Problem(
            code="lora-refused",
            message=f"these LoRA parameters do not fit {display_name(config)}: {message}"[:1024],
            fix="target linear modules: " + " ".join(linear_targets(model)),
            field="spec.method.lora",
        )
        return
    tokens = (m.base_layer for m in wrapped.modules() if hasattr(m, "trainable_tokens_delta"))
    if any(hasattr(layer, "modules_to_save") for layer in tokens):
        yield Problem(
            code="tokens-of-a-saved-layer",
            message="trainableTokenIndices names tokens of a layer that modulesToSave trains whole",
            fix="leave trainableTokenIndices out, or the embeddings out of modulesToSave",
            field="spec.method.lora.trainableTokenIndices",
        )
    if not counts(wrapped).trainable:
        yield Problem(
            code="nothing-to-train",
            message="these LoRA parameters leave nothing to train",
            fix="loosen excludeModules or layersToTransform",
            field="spec.method.lora",
        )
