"""The model card: what the model is, how it came about, how to use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.reports import CompletionManifest
from finetune_api.resolved import StageConfig
from finetune_trainer.model import model_folder


def render(config: StageConfig, manifest: CompletionManifest) -> str:
    """Return ``README.md`` of the published model."""
    spec = config.job.spec
    adapter = spec.method.kind != "full" and not manifest.merged
    parts = [
        _front(config, adapter=adapter),
        f"# {manifest.job}\n",
        f"{manifest.base_model}, fine-tuned with {_method(spec.method.to_json())} "
        f"({manifest.objective}) for {manifest.selected_step:,} steps.\n",
        "## Use\n",
        _use(manifest.base_model, spec.model.revision, adapter=adapter),
        "## Training\n",
        _table(_training(config, manifest)),
    ]
    if manifest.evaluation_after:
        parts += ["## Evaluation\n", _evaluation(manifest)]
    proof = manifest.verification
    if proof is not None:
        parts += [
            "## Verification\n",
            f"Logits on {proof.prompts} prompts differ from what was trained by at most "
            f"{proof.max_difference:.2g} (rounding explains {proof.tolerance:.2g}). The files were "
            "loaded in a clean process without network. Generation "
            + (
                "stops by itself.\n"
                if proof.stops
                else "did **not** stop by itself on the prompts that were tried.\n"
            ),
        ]
    return "\n".join(parts)


def _front(config: StageConfig, *, adapter: bool) -> str:
    """Return the YAML block that model hubs read."""
    uri = config.job.spec.model.uri
    lines = ["library_name: " + ("peft" if adapter else "transformers")]
    if uri.startswith("hf://"):
        lines += [
            f"base_model: {uri.removeprefix('hf://')}",
            "base_model_relation: " + ("adapter" if adapter else "finetune"),
        ]
    terms = terms_of(model_folder(config))
    lines += [f"{name}: {json.dumps(value)}" for name, value in terms.items()]
    lines += ["pipeline_tag: text-generation", "tags:", "- finetune"]
    return "---\n" + "\n".join(lines) + "\n---\n"


def terms_of(base: Path) -> dict[str, str]:
    """Return what the base's own card says of its licence."""
    from huggingface_hub import metadata_load

    try:
        front = metadata_load(base / "README.md") or {}
    except Exception:  # somebody else's text: there may be none, or anything in it
        return {}
    names = ("license", "license_name", "license_link")
    return {name: front[name] for name in names if isinstance(front.get(name), str)}


def _use(base: str, revision: str | None, *, adapter: bool) -> str:
    """Return a few lines of Python that answer a question."""
    imported = "AutoModelForCausalLM, AutoTokenizer"
    load = "model = AutoModelForCausalLM.from_pretrained(folder)\n"
    if adapter:
        imported += ", GenerationConfig"
        at = f", revision={json.dumps(revision)}" if revision else ""
        load = (
            f"{_base(base)}model = AutoModelForCausalLM.from_pretrained(base{at})\n"
            "model = PeftModel.from_pretrained(model, folder)\n"
            "model.generation_config = GenerationConfig.from_pretrained(folder)\n"
        )
    return (
        "```python\n"
        + ("from peft import PeftModel\n" if adapter else "")
        + f"from transformers import {imported}\n\n"
        'folder = "."  # where this file is\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        f"{load}"
        'messages = [{"role": "user", "content": "..."}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n)\n'
        "output = model.generate(**inputs, max_new_tokens=200)\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], '
        "skip_special_tokens=True))\n```\n"
    )


def _base(uri: str) -> str:
    """Return the line that names an adapter's base."""
    if uri.startswith("hf://"):
        return f"base = {json.dumps(uri.removeprefix('hf://'))}\n"
    return f'base = "base"  # the folder of {uri}\n'


def _training(config: StageConfig, manifest: CompletionManifest) -> list[tuple[str, str]]:
    """Return how the model came about."""
    spec, choices = config.job.spec, config.choices
    training = spec.training
    rows = [
        ("base model", f"{manifest.base_model} ({manifest.base_digest})"),
        ("method", _method(spec.method.to_json())),
        ("data", ", ".join(source.uri for source in spec.dataset.train)),
        ("steps", f"{manifest.steps:,} (published: {manifest.selected_step:,})"),
        ("learning rate", f"{training.learning_rate:g} ({training.lr_scheduler})"),
        ("optimizer", training.optimizer),
        ("precision", training.precision),
        ("maximum length", f"{spec.dataset.max_length:,} tokens"),
        ("seed", str(training.seed)),
        ("job", f"{manifest.job} ({manifest.job_uid}), {manifest.time}"),
    ]
    if choices is not None:
        rows.insert(4, ("global batch", f"{choices.global_batch_size} sequences"))
        rows.insert(5, ("data fingerprint", choices.fingerprint))
    return rows


def _evaluation(manifest: CompletionManifest) -> str:
    """Return the table of metrics before and after."""
    before, after = manifest.evaluation_before, manifest.evaluation_after
    lines = ["| metric | before | after |", "|---|---|---|"]
    for name, value in after.items():
        if name != "tokens":
            first = f"{before[name]:.4g}" if name in before else ""
            lines.append(f"| {name} | {first} | {value:.4g} |")
    return "\n".join(lines) + "\n"


def _method(method: dict[str, Any]) -> str:
    """Return the method and what was set, as in ``lora (r 8, alpha 32, ...)``."""
    kind, values = next(iter(method.items()))
    listed = ", ".join(
        f"{name} {_short(value)}"
        for name, value in values.items()
        if value is not None and value is not False
    )
    return f"{kind} ({listed})" if listed else kind


def _short(value: Any) -> str:
    """Return a value as people write it: 32, not 32.0."""
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, int | float) else json.dumps(value)


def _table(rows: list[tuple[str, str]]) -> str:
    lines = ["| | |", "|---|---|"]
    lines += [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows]
    return "\n".join(lines) + "\n"
