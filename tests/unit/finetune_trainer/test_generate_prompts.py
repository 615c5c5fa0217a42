"""Prompts of a file: what is one, and what is said of a file that has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_trainer import generate
from finetune_trainer.errors import StageError


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("one\n\n  two  \r\n", ["one", "two"]),
        ('["one", "two"]', ["one", "two"]),
        ('{"prompt": "one"}\n{"prompt": "two"}\n', ["one", "two"]),
        ('{"prompt": "a\u2028b"}\n', ["a\u2028b"]),
        ("first\u0085second\x0bthird\n", ["first\u0085second\x0bthird"]),
        ("{name} says hi\n", ["{name} says hi"]),
        ("[INST] hi [/INST]\n", ["[INST] hi [/INST]"]),
        ('[{"prompt": "hi"}, "ho"]', ["hi", "ho"]),
        ('\ufeff["a", "b"]', ["a", "b"]),
        ('{\n  "prompt": "one",\n  "id": 7\n}\n', ["one"]),
        ("{}[] = dict, list\n", ["{}[] = dict, list"]),
    ],
)
def test_prompts(tmp_path: Path, text: str, prompts: list[str]) -> None:
    file = tmp_path / "prompts"
    file.write_text(text, encoding="utf-8", newline="")
    assert generate.read_prompts(file) == prompts


@pytest.mark.parametrize(
    ("data", "message", "line"),
    [
        (b'one\n{"question": "x"}\n', '{"question": "x"} has no prompt', 2),
        (b'{"prompt": ["x"]}\n', '{"prompt": ["x"]} has no prompt', 1),
        (b'["one", 2]', "2 has no prompt", None),
        (b"caf\xe9\n", "it is not UTF-8", None),
        (None, "No such file or directory", None),
    ],
)
def test_what_is_no_prompt(
    tmp_path: Path, data: bytes | None, message: str, line: int | None
) -> None:
    file = tmp_path / "prompts"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(StageError) as caught:
        generate.read_prompts(file)
    assert caught.value.exit_code is ExitCode.INVALID_CONFIG
    problem = caught.value.problems[0]
    assert problem.message == f"the prompts cannot be used: {message}"
    assert (problem.code, problem.line) == ("prompts-invalid", line)
    assert problem.file == str(file)
