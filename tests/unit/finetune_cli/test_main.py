"""The frame of the command line: verbs, imports, extras."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from finetune_cli.main import VERBS, main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--client"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"finetune {version('finetunejob')}",
        "api      finetune.dev/v1alpha1",
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_module_and_its_help(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(VERBS[verb][0])
    assert callable(module.add_parser)
    assert callable(module.main)
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: finetune {verb}")


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert [verb for verb in VERBS if f"\n    {verb} " not in said] == []


@pytest.mark.parametrize("words", [[], ["validat"], ["validate"]])
def test_wrong_words_leave_with_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: finetune")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_validating_a_job_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "bot.yaml").write_text(
        "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: bot}\nspec:\n"
        "  model: {uri: pvc://m/x}\n  dataset: {train: [{uri: pvc://d/x}]}\n  method: {lora: {}}\n",
        encoding="utf-8",
    )
    ended = run(
        "import sys; from finetune_cli.main import main\n"
        f"code = main(['validate', {str(tmp_path / 'bot.yaml')!r}])\n"
        "heavy = {'torch', 'transformers', 'rich', 'numpy', 'kopf', 'kubernetes'}\n"
        "assert code == 0 and not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_missing_extra_says_what_to_install() -> None:
    ended = run(
        "import sys; sys.modules['ruamel'] = None; sys.modules['ruamel.yaml'] = None\n"
        "from finetune_cli.main import main; sys.exit(main(['validate', __import__('os').devnull]))"
    )
    # The null device is empty: YAML is read, and the reader is not there.
    assert (ended.returncode, ended.stderr) == (
        1,
        "finetune: ruamel is not installed\nfix: pip install 'finetunejob[cli]'\n",
    )


def shell(text: str, folder: Path) -> tuple[str, str]:
    """Run a line of bash in which FINETUNE is the command; returns what it prints, and errors."""
    ended = subprocess.run(
        text.replace("FINETUNE", f"{sys.executable} -m finetune_cli.main"),
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    return ended.stdout.strip(), ended.stderr


def test_a_reader_that_goes_away_changes_no_verdict(tmp_path: Path) -> None:
    line = '{ sleep 0.1; SET FINETUNE validate nothing.yaml; } | true; echo "${PIPESTATUS[0]}"'
    assert shell(line.replace("SET", ""), tmp_path) == ("10", "")
    # Cut off in the middle, as a program is that does not mind: no verdict, and no success.
    assert shell(line.replace("SET", "PYTHONUNBUFFERED=1"), tmp_path) == ("141", "")


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (
            "version --client > /dev/full",
            "1",
            "finetune: cannot go on: No space left on device\n",
        ),
        ("version --client >&-", "0", ""),
        ("validate nothing.yaml >&- 2>&-", "10", ""),
        ("watch nothing --workspace . >&- 2>&-", "1", ""),
        ("validate - <&- >/dev/null", "10", ""),
    ],
)
def test_outputs_and_inputs_that_are_closed_or_full(
    tmp_path: Path, line: str, code: str, said: str
) -> None:
    assert shell(f"FINETUNE {line}; echo $?", tmp_path) == (code, said)
