"""Whether a base has every weight of its architecture: a missing one would get random values.

The library only logs that. Names and shapes are in the headers of the files, so it is known before
anything is loaded, and before an accelerator is requested.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from finetune_api.resolved import StageConfig
from finetune_trainer.model import load_dtype, load_model_config, model_folder
from finetune_trainer.weights import check_loaded, header, weight_files

log = logging.getLogger(__name__)


def check(config: StageConfig) -> None:
    """Raise ``StageError`` (16) where the base's files lack weights or have them in other shapes.

    No weight is read. An architecture whose code comes with the model is left to its loading.
    """
    told = _told(config, model_folder(config))
    if told is not None:
        check_loaded(config.job.spec.model.uri, told)


def _told(config: StageConfig, folder: Path) -> dict[str, Any] | None:
    """Return what the library says when it is given all names and shapes, without numbers.

    That goes through its own table of the names that weights have had; None where that fails.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model_config = load_model_config(config)
    kind = AutoModelForCausalLM._model_mapping.get(type(model_config), None)
    if kind is None:
        return None
    shapes = {
        name: entry["shape"]
        for path in weight_files(folder)
        for name, entry in header(path).items()
    }
    try:
        _, told = kind.from_pretrained(
            None,
            config=model_config,
            state_dict={name: torch.empty(it, device="meta") for name, it in shapes.items()},
            device_map={"": "meta"},
            dtype=load_dtype(config),
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # an architecture that cannot be made so is checked as it is loaded
        log.info("the names of the base's weights are checked when it is loaded: %s", error)
        return None
    return dict(told)
