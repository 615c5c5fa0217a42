"""Answers of a model to a list of prompts: greedy, one JSON line each."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem, Refused
from finetune_api.resolved import StageConfig
from finetune_trainer import publish
from finetune_trainer.errors import StageError
from finetune_trainer.model import load_tokenizer, model_folder

MAX_NEW_TOKENS = 128


def run(
    folder: Path,
    prompts: Sequence[str],
    *,
    adapter: Path | None = None,
    tokenizer: Any = None,
    system_prompt: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    out: TextIO | None = None,
) -> list[str]:
    """Write ``{"prompt", "answer", "stopped", "tokens"}`` a line and return the answers.

    ``folder``: a published model, or a base; ``adapter``: to put on the base; ``tokenizer``:
    instead of the published one. Raises ``StageError`` (16) when there is no model.
    """
    answers = []
    model, tokenizer = load(folder, adapter, tokenizer)
    for line in answers_of(model, tokenizer, prompts, system_prompt, max_new_tokens):
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
    questions = read_prompts(prompts)
    folder, adapter, tokenizer = base, None, None
    if publish.published(config, target) is not None:
        whole = (target / "config.json").is_file()
        folder, adapter = (target, None) if whole else (base, target)
    else:
        tokenizer = trained_tokenizer(config)
    return run(
        folder,
        questions,
        adapter=adapter,
        tokenizer=tokenizer,
        system_prompt=config.job.spec.dataset.system_prompt,
    )


def trained_tokenizer(config: StageConfig) -> Any:
    """Return the tokenizer that the job trains with, and the template that it trains with."""
    from finetune_trainer.data.template import template_text

    tokenizer = load_tokenizer(config)
    chosen = config.job.spec.dataset.chat_template
    if chosen is not None:
        with contextlib.suppress(Refused):  # text data needs none
            tokenizer.chat_template = template_text(chosen, tokenizer)[0]
    return tokenizer


def answers_of(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    system_prompt: str | None,
    max_new_tokens: int,
) -> Iterator[dict[str, Any]]:
    """Yield one answer a prompt."""
    import torch

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


def load(folder: Path, adapter: Path | None = None, tokenizer: Any = None) -> tuple[Any, Any]:
    """Return (model, tokenizer) of a folder, offline, on the accelerator where there is one.

    What an adapter was published with counts: its tokenizer, its template, its end tokens.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
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
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(adapter or folder, local_files_only=True)
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
        if (adapter / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(
                adapter, local_files_only=True
            )
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
    """Return the prompts of a file: a JSON list, JSON lines with ``prompt``, or plain lines.

    A prompt is a string, or an object that holds one under ``prompt``. Raises ``StageError`` (10)
    when the file cannot be read, or has JSON without a prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise _no_prompts(path, None, reason) from error
    whole = _parsed(text)
    if isinstance(whole, list):
        return [_prompt(path, None, entry) for entry in whole]
    if isinstance(whole, dict) and "\n" in text.strip():
        return [_prompt(path, None, whole)]
    found = []
    # Not ``splitlines``: other characters that end lines may stand in a prompt.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            entry = _parsed(line)
            is_object = isinstance(entry, dict)
            found.append(_prompt(path, number, entry) if is_object else line.strip())
    return found


def _parsed(text: str) -> Any:
    """Return a JSON list or object; None where a text is none."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def _prompt(path: Path, line: int | None, entry: Any) -> str:
    """Return the prompt of an entry."""
    prompt = entry.get("prompt") if isinstance(entry, dict) else entry
    if not isinstance(prompt, str):
        shown = json.dumps(entry, ensure_ascii=False)[:100]
        raise _no_prompts(path, line, f"{shown} has no prompt")
    return prompt


def _no_prompts(path: Path, line: int | None, reason: str) -> StageError:
    """Return the error of prompts that are none."""
    return StageError(
        ExitCode.INVALID_CONFIG,
        Problem(
            code="prompts-invalid",
            message=f"the prompts cannot be used: {reason}",
            fix='write one prompt a line, or a JSON object {"prompt": "..."} a line',
            file=str(path)[:1024],
            line=line,
        ),
    )
