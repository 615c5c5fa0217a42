"""ResolvedJob to TrainingArguments: the only place that knows both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_api.resolved import Attempt, Choices, StageConfig
from finetune_trainer.errors import StageError
from finetune_trainer.optimizers import optimizer_name, schedule
from finetune_trainer.parallelism import deepspeed_config

if TYPE_CHECKING:
    from transformers import TrainingArguments

COLLECTIVE_TIMEOUT = 1800
"""Seconds; the watchdog ends a rank that hangs long before."""


def accumulation(global_batch: int, world_size: int, micro_batch: int) -> int:
    """Return the micro-batches of one rank in an optimizer step.

    Raises:
        StageError: the global batch cannot be divided evenly (10).
    """
    at_once = world_size * micro_batch
    if global_batch % at_once == 0:
        return global_batch // at_once
    lower = global_batch // at_once * at_once
    near = " or ".join(str(n) for n in (lower, lower + at_once) if n)
    raise StageError(
        ExitCode.INVALID_CONFIG,
        Problem(
            code="global-batch-not-divisible",
            message=f"globalBatchSize {global_batch} cannot be divided by {world_size} ranks x "
            f"microBatchSize {micro_batch} = {at_once}",
            fix=f"set globalBatchSize to {near}, or change the number of ranks",
            field="spec.training.globalBatchSize",
        ),
    )


def stage(config: StageConfig) -> tuple[Choices, Attempt]:
    """Return what a train stage needs beside the job.

    Raises:
        StageError: the configuration is that of another stage (10).
    """
    if config.choices is None or config.attempt is None:
        raise StageError(
            ExitCode.INVALID_CONFIG,
            Problem(
                code="incomplete-config",
                message="the configuration has no choices of preparation or no attempt",
                fix="run prepare first, and start train with the configuration of an attempt",
            ),
        )
    return config.choices, config.attempt


def training_arguments(config: StageConfig, folder: Path) -> TrainingArguments:
    """Return the arguments of the job; ``folder`` is for what transformers may want to write.

    Saving, evaluating and reporting are driven by our callbacks, never by the library's strategies.

    Raises:
        StageError: batches that do not divide, or a precision that the device has not (10).
    """
    from transformers import TrainingArguments

    from finetune_trainer.loader import workers

    choices, attempt = stage(config)
    spec = config.job.spec
    training = spec.training
    cpu = spec.resources.accelerator.device == "cpu"
    _check_precision(config, cpu)
    ahead = workers(spec.resources.accelerator.device, os.environ)
    plan = schedule(training, choices.total_steps)
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=attempt.micro_batch_size,
        per_device_eval_batch_size=spec.evaluation.batch_size or attempt.micro_batch_size,
        gradient_accumulation_steps=accumulation(
            choices.global_batch_size, attempt.world_size, attempt.micro_batch_size
        ),
        max_steps=choices.total_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=plan.name,
        lr_scheduler_kwargs=plan.arguments,
        warmup_steps=plan.warmup_steps,
        optim=optimizer_name(training),
        adam_beta1=training.betas[0],
        adam_beta2=training.betas[1],
        adam_epsilon=training.epsilon,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision == "bf16",
        fp16=training.precision == "fp16",
        neftune_noise_alpha=training.neftune_alpha,
        torch_compile=training.compile,
        average_tokens_across_devices=True,
        seed=training.seed,
        data_seed=training.seed,
        use_cpu=cpu,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        ddp_timeout=COLLECTIVE_TIMEOUT,
        deepspeed=deepspeed_config(spec),
        dataloader_num_workers=ahead,
        dataloader_persistent_workers=ahead > 0,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        logging_strategy="steps",
        logging_steps=training.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        skip_memory_metrics=True,
    )


def _check_precision(config: StageConfig, cpu: bool) -> None:
    """Refuse what a device or an engine does not have."""
    spec = config.job.spec
    precision = spec.training.precision
    if precision == "fp16" and cpu:
        message, fix = (
            "fp16 needs an accelerator: the CPU has no fp16 loss scaling",
            "use bf16 or fp32",
        )
    elif precision == "pureBf16" and spec.parallelism.deepspeed is not None:
        message = "pureBf16 has no meaning under DeepSpeed, which keeps fp32 master weights"
        fix = "use bf16, or parallelism ddp"
    else:
        return
    raise StageError(
        ExitCode.INVALID_CONFIG,
        Problem(
            code="precision-not-available",
            message=message,
            fix=fix,
            field="spec.training.precision",
        ),
    )
