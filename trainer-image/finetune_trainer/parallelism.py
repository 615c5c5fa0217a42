"""The engine: DeepSpeed's configuration, and the proof that what was asked for is what runs."""

from __future__ import annotations

from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.job import JobSpec
from finetune_api.problem import Problem
from finetune_trainer.errors import StageError


def deepspeed_config(spec: JobSpec) -> dict[str, Any] | None:
    """Return DeepSpeed's configuration; None for another engine.

    ``auto`` values are filled from the TrainingArguments. The optimizer is torch's own: DeepSpeed's
    would be compiled at the first use, and differ between CPU and CUDA.
    """
    deepspeed = spec.parallelism.deepspeed
    if deepspeed is None:
        return None
    cuda = spec.resources.accelerator.device == "cuda"
    zero: dict[str, Any] = {
        "stage": deepspeed.zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": cuda,
        "reduce_bucket_size": "auto",
    }
    if deepspeed.offload_optimizer:
        zero["offload_optimizer"] = {"device": deepspeed.offload_optimizer, "pin_memory": cuda}
    if deepspeed.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
        if deepspeed.offload_parameters:
            zero["offload_param"] = {"device": deepspeed.offload_parameters, "pin_memory": cuda}
    precision = spec.training.precision
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def begin_deepspeed_on_cpu() -> None:
    """Make the process group that exists known to DeepSpeed, which ZeRO-3 needs to load a model.

    On an accelerator accelerate does it. DeepSpeed is kept from compiling its shared-memory
    collectives: that takes a compiler and a minute on every new machine, and gloo does the same.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)


def engine_in_force(model: Any, world_size: int) -> str:
    """Return the engine that a wrapped model really runs under: ddp, zero-1 .. zero-3, or none.

    ``none`` is an unwrapped model. On one rank that is what ddp means: there is nothing to average,
    so transformers wraps nothing.
    """
    import torch

    stage = getattr(model, "zero_optimization_stage", None)
    if callable(stage):
        return f"zero-{int(stage())}"
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        ranks = torch.distributed.get_world_size(model.process_group)
        return "ddp" if ranks == world_size else f"ddp over {ranks} of {world_size} ranks"
    return "ddp" if world_size == 1 and type(model).__name__ != "DataParallel" else "none"


def assert_in_force(model: Any, spec: JobSpec, world_size: int) -> str:
    """Return the engine of the wrapped model, once it is the one that was asked for.

    Raises:
        StageError: another engine runs, or none (10): training would quietly be something else.
    """
    deepspeed = spec.parallelism.deepspeed
    wanted = f"zero-{deepspeed.zero_stage}" if deepspeed else spec.parallelism.engine
    found = engine_in_force(model, world_size)
    if found == wanted:
        return found
    raise StageError(
        ExitCode.INVALID_CONFIG,
        Problem(
            code="engine-not-in-force",
            message=f"{wanted} was asked for, and {found} is what would run on {world_size} ranks "
            f"({type(model).__name__})",
            fix="choose an engine that works on this device: ddp or deepspeed",
            field="spec.parallelism",
        ),
    )
