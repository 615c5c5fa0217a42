"""The trained weights back from a checkpoint: every one of them, or an end that says which is not.

transformers writes a model under the names of the hub, and holds the weights of many models under
others: experts as one tensor, or another name of the output layer. Only ``from_pretrained`` knows
both. The trainer's own way to resume takes the names as they are and leaves out, without a word,
what it does not find; so do peft and DeepSpeed with an adapter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_api.resolved import StageConfig
from finetune_trainer import methods, model
from finetune_trainer.errors import StageError, ending_of
from finetune_trainer.weights import listed

_MISFITS = (
    "Error(s) in loading state_dict",
    "size mismatch",
    "issues during automatic conversion of the weights",
)
"""What torch, peft and transformers say of names and shapes that do not fit."""
_WHILE_COPYING = "an exception occurred"
"""So torch tells, among them, what a device or the storage did while a weight that fits was copied."""


def network(config: StageConfig, folder: Path | None) -> Any:
    """Return the model with the job's method applied, to go on with from a checkpoint's folder.

    Full fine-tuning without DeepSpeed has its trained weights here already, in place of the base's.
    Other trained weights are loaded later, into the model that is returned: by peft or by the
    engine, and the model refuses it when one is not among them. ``None``: the base.

    Raises:
        StageError: 15 when the checkpoint does not have all the weights, or has others.
    """
    if folder is None:
        return methods.apply(model.load_model(config), config)
    if loads_at_once(config):
        with whole(folder):
            loaded, told = model.read(config, folder, ignore_mismatched_sizes=True)
        check_read(folder, told)
        if config.job.spec.resources.accelerator.device == "cpu":
            _let_go(loaded)
        return methods.apply(loaded, config)
    built = methods.apply(model.load_model(config), config)
    built.register_load_state_dict_post_hook(partial(_check_trained, folder))
    return built


def _let_go(network: Any) -> None:
    """Copy the weights out of the files that they are mapped from, one by one.

    On the CPU they stay where they were read, and the checkpoint is deleted some saves later: its
    room would not come back before the end, and on NFS its folder could not be deleted.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()


def loads_at_once(config: StageConfig) -> bool:
    """Tell whether the weights of a checkpoint are all there is to the model, in one piece."""
    spec = config.job.spec
    return spec.method.kind == "full" and spec.parallelism.deepspeed is None


@contextmanager
def whole(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise about weights that do not fit into ``StageError`` (15).

    Not what storage, memory or a device cause: the same may succeed at the next attempt.
    """
    try:
        yield
    except (KeyError, ValueError, RuntimeError) as error:
        if ending_of(error).exit_code != ExitCode.UNEXPECTED or not _misfit(error):
            raise
        raise _unusable(folder, f"{type(error).__name__}: {error}") from error


def _misfit(error: KeyError | ValueError | RuntimeError) -> bool:
    """Tell whether an error is about weights; of a ``RuntimeError`` its text alone tells."""
    if not isinstance(error, RuntimeError):
        return True
    text = str(error)
    return any(words in text for words in _MISFITS) and _WHILE_COPYING not in text


def check_read(folder: Path, told: dict[str, Any]) -> None:
    """Check what the library says of a model that it read with ``ignore_mismatched_sizes``."""
    for name, found, wanted in sorted(told["mismatched_keys"]):
        raise _unusable(folder, f"its {name} is {list(found)}, and the model's {list(wanted)}")
    check(folder, told["missing_keys"], told["unexpected_keys"])


def check(folder: Path, missing: Collection[str], unexpected: Collection[str]) -> None:
    """Raise ``StageError`` (15) for weights that a checkpoint lacks, or that nothing has a place for."""
    if missing:
        raise _unusable(folder, f"it has no {listed(missing)}")
    if unexpected:
        raise _unusable(folder, f"the model has no {listed(unexpected)}, and it has")


def _check_trained(folder: Path, network: Any, keys: Any) -> None:
    """Check what a model was given: the frozen weights of its base may be missing, no others."""
    check(folder, _untouched(network, set(keys.missing_keys)), keys.unexpected_keys)


def _untouched(network: Any, missing: set[str]) -> list[str]:
    """Return the trained weights that are missing under each of their names: tied ones have two."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(name)
    return [held[0] for held in names.values() if missing.issuperset(held)]


def _unusable(folder: Path, what: str) -> StageError:
    message = f"{'/'.join(folder.parts[-3:])} does not restore the model: {what}"
    return StageError(
        ExitCode.CHECKPOINT_UNUSABLE,
        Problem(
            code="checkpoint-unusable",
            message=message[:1024],
            fix="use the trainer image and the model that the job began with; or create the job "
            "anew to train from the beginning",
        ),
    )
