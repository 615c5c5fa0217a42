"""Run in a process of its own: load a published model as a stranger would, and use it.

Reads a request (JSON) and writes logits (safetensors) and an answer (JSON). Nothing of the trainer
is imported, so that the model proves itself with the published files alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KEEP = 8
"""Last positions of each prompt whose logits are compared."""


def logits_of(model: Any, inputs: list[list[int]]) -> dict[str, Any]:
    """Return the last logits of each prompt in fp32, by its number."""
    import torch

    found = {}
    with torch.inference_mode():
        for number, ids in enumerate(inputs):
            out = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            found[str(number)] = out[0, -KEEP:].float().clone()
    return found


def generation(model: Any, questions: list[list[int]], limit: int) -> dict[str, int]:
    """Return how many prompts were tried and how many answers stopped by themselves.

    The first that stops is proof enough.
    """
    import torch

    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    tried = 0
    for ids in questions:
        tried += 1
        with torch.inference_mode():
            out = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False,
                max_new_tokens=limit,
            )
        if int(out[0, -1]) in ends:
            return {"tried": tried, "stopped": 1}
    return {"tried": tried, "stopped": 0}


def main(folder: str, request_file: str, answer_folder: str) -> None:
    """Load ``folder``, answer the request."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    dtype = getattr(torch, request["dtype"])
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    options |= {"attn_implementation": request["attention"], "use_safetensors": True}
    AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if request.get("base"):
        import peft

        model = AutoModelForCausalLM.from_pretrained(request["base"], **options)
        model = peft.PeftModel.from_pretrained(model, folder)
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    model.eval()
    answers = Path(answer_folder)
    save_file(logits_of(model, request["inputs"]), answers / "logits.safetensors")
    told = generation(model, request["questions"], request["max_new_tokens"])
    (answers / "answer.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:4])
