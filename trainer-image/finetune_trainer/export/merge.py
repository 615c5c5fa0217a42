"""The trained weights as one model, exact in fp32 and rounded once to the base's own type."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_api.resolved import StageConfig
from finetune_trainer.checkpoint import trained
from finetune_trainer.errors import StageError
from finetune_trainer.memory.verdict import machine_memory
from finetune_trainer.model import attention, load_model_config, model_folder
from finetune_trainer.weights import weight_files

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

log = logging.getLogger(__name__)

SHARD = "5GB"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "top_h"),
    *("typical_p", "epsilon_cutoff", "eta_cutoff"),
)
"""Values that do not validate without sampling."""
HEADROOM = 1.5
"""Of the weights in fp32: the largest layer twice, logits, and the libraries."""


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the type that most of a model's weights are stored in."""
    import torch
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                part = tensors.get_slice(name)
                count = 1
                for length in part.get_shape():
                    count *= length
                sizes[part.get_dtype()] = sizes.get(part.get_dtype(), 0) + count
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    most = max(sizes, key=lambda kind: sizes[kind])
    return kinds.get(most, torch.float32)


def parameters(folder: Path) -> int:
    """Return the number of a model's weights, from the size of its files."""
    size = sum(path.stat().st_size for path in weight_files(folder))
    return size // stored_dtype(folder).itemsize


def working_dtype(config: StageConfig) -> torch.dtype:
    """Return fp32 where the base fits in fp32, else the type that it is stored in."""
    import torch

    folder = model_folder(config)
    stored = stored_dtype(folder)
    if parameters(folder) * 4 * HEADROOM <= machine_memory():
        return torch.float32
    log.warning("merging in %s: there is no room for the base in fp32", stored)
    return stored


def load_trained(config: StageConfig, checkpoint: Path, dtype: torch.dtype) -> Any:
    """Return what was trained, before any merge: the full model, or base and adapter.

    Raises ``StageError`` (15) when the checkpoint does not have all of it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    spec = config.job.spec
    adapter = spec.method.kind != "full"
    model_config = load_model_config(config)
    model, told = AutoModelForCausalLM.from_pretrained(
        model_folder(config) if adapter else checkpoint,
        config=model_config,
        dtype=dtype,
        attn_implementation=attention(config, model_config),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=spec.model.remote_code,
        ignore_mismatched_sizes=not adapter,  # those of a checkpoint are named below
        output_loading_info=True,
    )
    if not adapter:
        trained.check_read(checkpoint, told)
        return model.eval()
    missing = [name for name in ADAPTER_FILES if not (checkpoint / name).is_file()]
    if missing:
        raise StageError(
            ExitCode.CHECKPOINT_UNUSABLE,
            Problem(
                code="adapter-missing",
                message=f"the checkpoint has no {missing[0]}",
                fix="train again from an earlier checkpoint",
            ),
        )
    import peft

    adapted = peft.PeftModel.from_pretrained(model, checkpoint, is_trainable=False)
    wanted = set(peft.get_peft_model_state_dict(adapted))
    found = set(names_in(checkpoint / ADAPTER_FILES[0]))
    trained.check(checkpoint, wanted - found, found - wanted)  # peft only warns
    return adapted.eval()


def merge(model: Any) -> Any:
    """Return base and adapter as one model; weights become ``W + scale * B A`` in their own type."""
    return model.merge_and_unload(progressbar=False, safe_merge=True)


def save(model: Any, folder: Path, dtype: torch.dtype, end_tokens: list[int]) -> None:
    """Write a model as safetensors in ``dtype``, with a generation config that knows where to stop.

    Every tensor is read again and compared bit by bit with what was to be written.
    """
    model.to(dtype)
    model.config.use_cache = True
    model.config.dtype = dtype
    model.generation_config = settled(model.generation_config, end_tokens)
    model.save_pretrained(folder, safe_serialization=True, max_shard_size=SHARD)
    _compare(model, folder)


def settled(settings: GenerationConfig, end_tokens: list[int]) -> GenerationConfig:
    """Return settings that end where trained answers end and where the base's did, and validate.

    The library reads what does not validate and refuses to write it once it was changed: of such
    settings the tokens alone are kept.
    """
    from transformers import GenerationConfig

    kept = copy.deepcopy(settings)
    known = kept.eos_token_id
    ends = known if isinstance(known, list) else [known] if known is not None else []
    kept.eos_token_id = list(dict.fromkeys([*ends, *end_tokens])) or None
    if kept.pad_token_id is None or kept.pad_token_id < 0:
        kept.pad_token_id = end_tokens[0] if end_tokens else None
    if kept.do_sample is not True:
        for name in SAMPLING:
            setattr(kept, name, None)
    try:
        kept.validate(strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        log.warning("of the base's generation settings only the tokens are published: %s", reason)
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return GenerationConfig(**{name: getattr(kept, name) for name in names})
    return kept


def _compare(model: Any, folder: Path) -> None:
    """Raise ``StageError`` when the files do not hold the model's weights."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    state = revert_weight_conversion(model, model.state_dict())  # under the names of the files
    for name, tensor in _written(folder):
        if name not in state or not torch.equal(state[name], tensor):
            raise StageError(
                ExitCode.STORAGE_FULL,
                Problem(
                    code="output-not-written",
                    message=f"{name} reads back differently from what was written",
                    fix="check the volume of the output, then publish again",
                    field="spec.output.uri",
                ),
            )


def names_in(path: Path) -> list[str]:
    """Return the names of the tensors of a file of safetensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        return list(tensors.keys())


def _written(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a folder's safetensors."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                yield name, tensors.get_tensor(name)


def copy_adapter(config: StageConfig, checkpoint: Path, folder: Path) -> None:
    """Copy the adapter; its configuration names the base as users find it, not by a path of ours."""
    base = config.job.spec.model
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint / ADAPTER_FILES[0], folder / ADAPTER_FILES[0])
    settings = json.loads((checkpoint / ADAPTER_FILES[1]).read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base.uri.removeprefix("hf://")
    settings["revision"] = base.revision
    settings["inference_mode"] = True
    text = json.dumps(settings, indent=2, sort_keys=True)
    (folder / ADAPTER_FILES[1]).write_text(text + "\n", encoding="utf-8")
