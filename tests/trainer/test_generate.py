"""Answers to a list of prompts."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_trainer import generate, main
from finetune_trainer.errors import StageError
from harness.stage_config import make_config, write_config
from harness.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("job")
    make_tiny_model(root / "volumes" / "models" / "tiny")
    make_tiny_model(root / "volumes" / "models" / "plain", chat_template=None)
    return root


def test_what_the_model_is_asked(root: Path) -> None:
    _, tokenizer = generate.load(root / "volumes/models/tiny")
    ids = generate.encoded(tokenizer, "What is your name?", "Be brief.")["input_ids"][0]
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat is your name?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    _, plain = generate.load(root / "volumes/models/plain")
    ids = generate.encoded(plain, "What is your name?", None)["input_ids"][0]
    assert plain.decode(ids) == "What is your name?"


def test_before_training_the_base_is_asked_as_it_will_be_trained(root: Path) -> None:
    """A base without a template or a tokenizer of its own, and a job that names both."""
    (root / "volumes/models/bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (root / "volumes/models/bare" / name).write_bytes(
            (root / "volumes/models/plain" / name).read_bytes()
        )
    spec = {
        "model": {"uri": "pvc://models/bare", "tokenizer": {"uri": "pvc://models/plain"}},
        "dataset": {"chatTemplate": "chatml"},
    }
    tokenizer = generate.trained_tokenizer(make_config(root, "generate", spec))
    _, loaded = generate.load(root / "volumes/models/bare", tokenizer=tokenizer)
    ids = generate.encoded(loaded, "Your name?", None)["input_ids"][0]
    assert loaded.decode(ids) == ("<|im_start|>user\nYour name?<|im_end|>\n<|im_start|>assistant\n")


def test_one_line_an_answer(root: Path) -> None:
    lines = io.StringIO()
    folder = root / "volumes/models/tiny"
    answers = generate.run(folder, ["a", "b"], max_new_tokens=5, out=lines)
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line["prompt"] for line in told] == ["a", "b"]
    assert [line["answer"] for line in told] == answers
    assert all(1 <= line["tokens"] <= 5 for line in told)
    # Greedy: the same again.
    assert generate.run(folder, ["a", "b"], max_new_tokens=5, out=io.StringIO()) == answers


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        generate.load(tmp_path)
    assert caught.value.exit_code is ExitCode.MODEL_UNAVAILABLE


def test_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(make_config(root, "generate"), tmp_path / "generate.json")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is your name?\n")
    assert main.main(["generate", "--config", str(config), "--prompts", str(prompts)]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("{")]
    assert json.loads(line)["prompt"] == "What is your name?"
    assert main.main(["generate", "--config", str(config)]) == 10
    assert "no-prompts" in capsys.readouterr().err
