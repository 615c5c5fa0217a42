"""Names that other tools use for our fields, for "did you mean"."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic.alias_generators import to_camel


@dataclass(frozen=True)
class Synonym:
    """What a name of another tool means here."""

    field: str | None
    """Path in the object; None where nothing has to be said here at all."""
    fix: str


@dataclass(frozen=True)
class Suggestion:
    """The answer to an unknown name."""

    field: str | None
    """Path in the object where a table said so, else the known name that is meant."""
    fix: str


def _at(path: str, note: str = "") -> Synonym:
    field = f"spec.{path}"
    return Synonym(field, f"{field} ({note})" if note else field)


def _nothing(fix: str) -> Synonym:
    return Synonym(None, fix)


_PER_GPU = "spec.training.microBatchSize (per GPU), or leave it out and set globalBatchSize"
_ACCUMULATION = (
    "accumulation follows from spec.training.globalBatchSize and the number of GPUs; "
    "set globalBatchSize"
)
_LORA = "spec.method: {lora: {...}}"

SYNONYMS: dict[str, Synonym] = {
    # models
    "model_name_or_path": _at("model.uri", "hf://owner/name or pvc://claim/path"),
    "pretrained_model_name_or_path": _at("model.uri", "hf://owner/name or pvc://claim/path"),
    "base_model": _at("model.uri", "hf://owner/name or pvc://claim/path"),
    "model_name": _at("model.uri", "hf://owner/name or pvc://claim/path"),
    "model_revision": _at("model.revision"),
    "tokenizer_name": _at("model.tokenizer.uri"),
    "adapter_name_or_path": _at("model.adapter.uri"),
    "trust_remote_code": _at("model.remoteCode", "a profile has to allow it"),
    "attn_implementation": _at("model.attention"),
    "flash_attn": _at("model.attention"),
    "load_in_4bit": _at("model.quantization", "nf4"),
    "load_in_8bit": _at("model.quantization", "int8"),
    "quantization_bit": _at("model.quantization", "nf4 or int8"),
    "additional_special_tokens": _at("model.addTokens"),
    "hf_hub_token": _at("model.tokenSecretRef", "the name of a secret, never the token itself"),
    # data
    "datasets": _at("dataset.train", "a list of {uri: ...}"),
    "dataset_name": _at("dataset.train", "a list of {uri: ...}"),
    "train_file": _at("dataset.train", "a list of {uri: ...}"),
    "train_data": _at("dataset.train", "a list of {uri: ...}"),
    "validation_file": _at("dataset.validation.sources", "a list of {uri: ...}"),
    "eval_dataset": _at("dataset.validation.sources", "a list of {uri: ...}"),
    "val_size": _at("dataset.validation.fraction"),
    "val_set_size": _at("dataset.validation.fraction"),
    "test_size": _at("dataset.validation.fraction"),
    "cutoff_len": _at("dataset.maxLength"),
    "max_seq_length": _at("dataset.maxLength"),
    "max_seq_len": _at("dataset.maxLength"),
    "sequence_len": _at("dataset.maxLength"),
    "model_max_length": _at("dataset.maxLength"),
    "sample_packing": _at("dataset.packing"),
    "train_on_inputs": _at("dataset.lossOn", "All trains on the questions too"),
    "train_on_prompt": _at("dataset.lossOn", "All trains on the questions too"),
    "assistant_only_loss": _at("dataset.lossOn", "Assistant"),
    "completion_only_loss": _at("dataset.lossOn", "Completion"),
    "mask_history": _at("dataset.lossOn", "LastAssistant"),
    "template": _at("dataset.chatTemplate"),
    "max_samples": _at("dataset.train[0].maxRows"),
    "max_train_samples": _at("dataset.train[0].maxRows"),
    # method
    "finetuning_type": Synonym("spec.method", "spec.method: {full: {}} or {lora: {}}"),
    "use_peft": Synonym("spec.method", _LORA),
    "lora_r": _at("method.lora.r"),
    "lora_rank": _at("method.lora.r"),
    "rank": _at("method.lora.r"),
    "lora_alpha": _at("method.lora.alpha"),
    "lora_dropout": _at("method.lora.dropout"),
    "lora_target": _at("method.lora.targetModules"),
    "lora_target_modules": _at("method.lora.targetModules"),
    "lora_target_linear": _at("method.lora.targetModules", "all-linear"),
    "additional_target": _at("method.lora.modulesToSave"),
    "use_rslora": _at("method.lora.useRslora"),
    "use_dora": _at("method.lora.useDora"),
    # objective
    "stage": Synonym("spec.objective", "spec.objective: {sft: {}}"),
    "training_type": Synonym("spec.objective", "spec.objective: {sft: {}}"),
    "pref_beta": _at("objective.dpo.beta"),
    "dpo_beta": _at("objective.dpo.beta"),
    # training
    "per_device_train_batch_size": Synonym("spec.training.microBatchSize", _PER_GPU),
    "train_micro_batch_size_per_gpu": Synonym("spec.training.microBatchSize", _PER_GPU),
    "micro_batch_size": Synonym("spec.training.microBatchSize", _PER_GPU),
    "batch_size": Synonym(
        "spec.training.globalBatchSize",
        "spec.training.globalBatchSize (over all GPUs), or microBatchSize (per GPU)",
    ),
    "train_batch_size": _at("training.globalBatchSize", "over all GPUs"),
    "gradient_accumulation_steps": Synonym("spec.training.globalBatchSize", _ACCUMULATION),
    "num_train_epochs": _at("training.epochs"),
    "num_epochs": _at("training.epochs"),
    "max_train_steps": _at("training.maxSteps"),
    "learning_rate": _at("training.learningRate"),
    "lr": _at("training.learningRate"),
    "lr_scheduler_type": _at("training.lrScheduler"),
    "warmup_proportion": _at("training.warmupRatio"),
    "num_warmup_steps": _at("training.warmupSteps"),
    "optim": _at("training.optimizer"),
    "adam_beta1": _at("training.betas", "[0.9, 0.999]"),
    "adam_beta2": _at("training.betas", "[0.9, 0.999]"),
    "adam_epsilon": _at("training.epsilon"),
    "gradient_clipping": _at("training.maxGradNorm"),
    "max_grad_norm": _at("training.maxGradNorm"),
    "bf16": _at("training.precision", "bf16"),
    "fp16": _at("training.precision", "fp16"),
    "mixed_precision": _at("training.precision"),
    "torch_dtype": _at("training.precision"),
    "neftune_noise_alpha": _at("training.neftuneAlpha"),
    "label_smoothing_factor": _at("training.labelSmoothing"),
    "group_by_length": _at("training.sampling", "GroupByLength"),
    "torch_compile": _at("training.compile"),
    # parallelism
    "deepspeed_config": _at("parallelism.deepspeed.zeroStage", "the rest follows from the job"),
    "deepspeed": _at("parallelism.deepspeed", "{zeroStage: 2}, not a file"),
    "zero_stage": _at("parallelism.deepspeed.zeroStage"),
    "stage3": _at("parallelism.deepspeed.zeroStage", "3"),
    "fsdp": _at("parallelism.fsdp"),
    "fsdp_config": _at("parallelism.fsdp"),
    # machines
    "nproc_per_node": _at("resources.processesPerNode"),
    "nnodes": _at("resources.nodes"),
    "num_machines": _at("resources.nodes"),
    "num_gpus": _at("resources.accelerator.perNode"),
    "gpus": _at("resources.accelerator.perNode"),
    # life
    "save_steps": _at("checkpoint.everySteps", "or say how much work may be lost: maxLostWork"),
    "save_total_limit": _at("checkpoint.keep"),
    "eval_steps": _at("evaluation.everySteps"),
    "per_device_eval_batch_size": _at("evaluation.batchSize"),
    "load_best_model_at_end": _at("output.select", "best"),
    "early_stopping_patience": _at("evaluation.earlyStopping.patience"),
    "output_dir": _at("output.uri", "pvc://claim/path; absent: in the workspace"),
    "report_to": _at("reporting"),
    "resume_from_checkpoint": _nothing(
        "leave it out: a job always resumes from its newest verified checkpoint"
    ),
    "do_train": _nothing("leave it out"),
    "do_eval": _nothing("leave it out: validation data is always evaluated"),
    "dataloader_num_workers": _nothing("leave it out: data is prepared before training"),
    "preprocessing_num_workers": _nothing("leave it out: preparation uses the CPUs it is given"),
    "local_rank": _nothing("leave it out: ranks are made from spec.resources"),
    "ddp_timeout": _nothing("leave it out: time-outs follow from checkpoint.gracePeriodSeconds"),
}
"""Names in snake_case; ``suggest`` finds their camelCase and kebab-case forms as well."""


def suggest(name: str, known_names: Iterable[str]) -> Suggestion | None:
    """Return what an unknown name most likely means, or None where nothing is near.

    ``known_names`` are the names that may stand where the unknown one stands. One of them that is
    spelled in another case wins, then the table, then the nearest of them.
    """
    known = tuple(known_names)
    plain = _plain(name)
    for candidate in known:
        if _plain(candidate) == plain:
            return Suggestion(candidate, f"spell it {candidate}")
    synonym = _BY_PLAIN.get(plain)
    if synonym:
        return Suggestion(synonym.field, synonym.fix)
    for text in (name, to_camel(name)):
        near = difflib.get_close_matches(text, known, n=1, cutoff=0.72)
        if near:
            return Suggestion(near[0], f"did you mean {near[0]}?")
    return None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_BY_PLAIN = {_plain(name): synonym for name, synonym in SYNONYMS.items()}
