"""Answers of a model to a list of prompts: greedy, one JSON line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_api.resolved import StageConfig
from finetune_trainer import publish
from finetune_trainer.errors import StageError
from finetune_trainer.model import model_folder

MAX_NEW_TOKENS = 128


def run(
    folder: Path,
    prompts: Sequence[str],
    *,
    adapter: Path | None = None,
    system_prompt: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    out: TextIO | None = None,
) -> list[str]:
    """Write ``{"prompt", "answer", "stopped", "tokens"}`` a line and return the answers.

    ``folder``: a published model, or a base; ``adapter``: to put on the base. Raises
    ``StageError`` (16) when there is no model.
    """
    answers = []
    for line in answers_of(folder, prompts, adapter, system_prompt, max_new_tokens):
        stream = out or sys.stdout
        stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        stream.flush()
        answers.append(str(line["answer"]))
    return answers


def run_stage(config: StageConfig, prompts: Path | None) -> list[str]:
    """Answer the prompts of a file with the job's output, or before there is one with its base."""
    if prompts is None:
        raise StageError(
            ExitCode.INVALID_CONFIG,
            Problem(
                code="no-prompts",
                message="generate needs prompts",
                fix="add --prompts FILE, one prompt a line",
            ),
        )
    target = publish.output_folder(config)
    base = model_folder(config)
    folder, adapter = base, None
    if publish.published(config, target) is not None:
        whole = (target / "config.json").is_file()
        folder, adapter = (target, None) if whole else (base, target)
    system_prompt = config.job.spec.dataset.system_prompt
    return run(folder, read_prompts(prompts), adapter=adapter, system_prompt=system_prompt)


def answers_of(
    folder: Path,
    prompts: Sequence[str],
    adapter: Path | None,
    system_prompt: str | None,
    max_new_tokens: int,
) -> Iterator[dict[str, Any]]:
    """Yield one answer a prompt."""
    import torch

    model, tokenizer = load(folder, adapter)
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    for prompt in prompts:
        inputs = encoded(tokenizer, prompt, system_prompt)
        length = int(inputs["input_ids"].shape[1])
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        new = output[0, length:]
        yield {
            "prompt": prompt,
            "answer": tokenizer.decode(new, skip_special_tokens=True).strip(),
            "stopped": bool(len(new)) and int(new[-1]) in ends,
            "tokens": len(new),
        }


def load(folder: Path, adapter: Path | None = None) -> tuple[Any, Any]:
    """Return (model, tokenizer) of a folder, offline, on the accelerator where there is one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if not (folder / "config.json").is_file():
        raise StageError(
            ExitCode.MODEL_UNAVAILABLE,
            Problem(
                code="model-config-missing",
                message=f"{folder} holds no model",
                fix="name the folder of a published model: the one with config.json",
            ),
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto" if cuda else torch.float32,
        local_files_only=True,
        use_safetensors=True,
    )
    if adapter is not None:
        import peft

        model = peft.PeftModel.from_pretrained(model, adapter)
    # Greedy: sampling values of a generation config would only be warned about.
    for name in ("temperature", "top_p", "top_k"):
        setattr(model.generation_config, name, None)
    return (model.cuda() if cuda else model).eval(), tokenizer


def encoded(tokenizer: Any, prompt: str, system_prompt: str | None) -> Any:
    """Return the model's inputs of a question; without a chat template the text as it stands."""
    if not tokenizer.chat_template:
        return tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    messages = [{"role": "user", "content": prompt}]
    if system_prompt:
        messages.insert(0, {"role": "system", "content": system_prompt})
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a file: a JSON list, JSON lines with ``prompt``, or plain lines."""
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return [str(prompt) for prompt in json.loads(text)]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [str(json.loads(line)["prompt"]) if line.startswith("{") else line for line in lines]
