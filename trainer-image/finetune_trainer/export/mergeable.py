"""Whether an adapter can become part of its base: known from the structure, before any training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from finetune_api.problem import Problem
from finetune_api.resolved import StageConfig
from finetune_trainer import methods

if TYPE_CHECKING:
    from torch import nn


WRAPPING = frozenset({"base_layer", "token_adapter", "trainable_tokens_delta"})
"""Parts of names that peft adds to those of the base."""


def refusal(config: StageConfig) -> Problem | None:
    """Return the problem of a job that asks for a merge that cannot be; None: it can, or need not.

    Needs the model's configuration only.
    """
    lora = config.job.spec.method.lora
    if lora is None or not config.job.spec.output.merge:
        return None
    if lora.layer_replication:
        return _problem("layerReplication lets layers share weights")
    model = methods.structure(config)
    if lora.lora_bias and _bare(model):
        return _problem("loraBias adds a bias to layers that have none")
    changed = list(_shared(model))
    if not changed:
        return None
    layer, other = changed[-1]  # the output layer, where both embeddings are changed
    whole = ""
    if _is_embedding(model, layer) and lora.trainable_token_indices is None:
        name = layer.rpartition(".")[2]
        whole = f", or train {name} whole: name it in modulesToSave and not as a target"
    return _problem(f"the adapter changes {layer}, whose weight is the one of {other} too", whole)


def _problem(reason: str, other_fix: str = "") -> Problem:
    return Problem(
        code="merge-not-possible",
        message=f"{reason}, so the adapter cannot be merged",
        fix=f"set output.merge: false{other_fix}",
        field="spec.output.merge",
    )


def _bare(model: Any) -> bool:
    """Return whether an adapter with a bias lies on a layer without one."""
    biased = (module for module in model.modules() if getattr(module, "lora_bias", None))
    return any(getattr(module.get_base_layer(), "bias", None) is None for module in biased)


def _shared(model: Any) -> Iterator[tuple[str, str]]:
    """Yield (layer with an adapter, another layer that has the same weight).

    Merging adds to the weight in its place: where it is tied the other layer would change as well.
    What ``modulesToSave`` has replaced is out of use, its copies are weights of their own.
    """
    from peft.tuners.lora import LoraLayer

    unused: set[int] = set()
    for module in model.modules():
        original = getattr(module, "original_module", None)
        unused |= {id(part) for part in original.modules()} if original is not None else set()
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for weight in module._parameters.values():
            if weight is not None and id(module) not in unused:
                owners.setdefault(id(weight), []).append(_plain(name))
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layer = _plain(name)
            weights = module.get_base_layer().parameters()
            others = (owner for weight in weights for owner in owners.get(id(weight), ()))
            other = next((owner for owner in others if owner != layer), None)
            if other is not None:
                yield layer, other


def _plain(name: str) -> str:
    """Return a layer's name in the base, without what peft puts around it."""
    name = name.removeprefix("base_model.model.")
    return ".".join(part for part in name.split(".") if part not in WRAPPING)


def _is_embedding(model: nn.Module, layer: str) -> bool:
    """Return whether a layer of the base is its input or output embedding."""
    base: Any = model
    base = base.get_base_model()
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    return base.get_submodule(layer) in ends
