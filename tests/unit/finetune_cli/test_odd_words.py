"""Words on the command line that are legal and odd: refused in words, never with a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_api.problem import Problem
from finetune_cli.main import main

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: bot}
spec:
  model: {uri: pvc://models/tiny}
  dataset: {train: [{uri: pvc://datasets/train.jsonl}]}
  method: {lora: {}}
"""
NO_TEXT = os.fsdecode(b"\xff")
LONG = "x" * 300
VOLUMES = ["--volume", "models=good", "--volume", "datasets=good"]
RUN = ["run", "bot.yaml", *VOLUMES, "--workspace"]
DEEP = "/".join(["x" * 200] * 7)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good job, two volumes and a kubeconfig whose server does not answer."""
    (tmp_path / "bot.yaml").write_text(JOB)
    (tmp_path / "config").write_text(
        'apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: "http://127.0.0.1:9"}}]\n'
        "users: []\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
    )
    for name in ("good", NO_TEXT):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["validate", f"{NO_TEXT}.yaml"], 10, "there is no such file [file-not-found]"),
        (["validate", f"{DEEP}.yaml"], 10, "there is no such file"),
        (["run", "bot.yaml", "--volume", f"datasets={NO_TEXT}x"], 10, "[volume-missing]"),
        (["run", "bot.yaml", "--volume", f"datasets={DEEP}"], 10, "does not exist"),
        (["run", "bot.yaml", "--volume", f"datasets={LONG}"], 10, "File name too long"),
        (["run", "bot.yaml", "--volume", f"datasets={NO_TEXT}"], 10, "has a name that is no UTF-8"),
        ([*RUN, LONG], 10, "cannot be used: File name too long [workspace-unusable]"),
        ([*RUN, NO_TEXT], 10, "has a name that is no UTF-8 [workspace-unusable]"),
        (["watch", f"a{NO_TEXT}", "--workspace", "good"], 1, "no job a\\udcff under good"),
        (["watch", f"a{NO_TEXT}"], 1, "no job a\\udcff in namespace default"),
        (["watch", "bot", "-n", NO_TEXT], 1, "no namespace can be called \\udcff"),
        (["watch", "bot", "--context", NO_TEXT], 1, "has no context \\udcff"),
        (["watch", LONG], 1, "[cluster-unreachable]"),
        (["watch", LONG, "--workspace", "good"], 1, "[job-not-found]"),
        (["watch", "x" * 1400, "--workspace", "good"], 1, "[job-not-found]"),
        (["logs", "bot", "--workspace", LONG], 1, "[job-not-found]"),
    ],
)
def test_odd_words(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


def test_a_long_path_with_two_jobs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = folder / "/".join(["y" * 200] * 6)
    deep.mkdir(parents=True)
    (deep / "two.yaml").write_text(f"{JOB}---\n{JOB.replace('bot', 'other')}")
    assert main(["explain", str(deep / "two.yaml")]) == 10
    printed = capsys.readouterr()
    assert "the file holds 2 FineTuneJobs: bot, other [which-job]" in printed.out + printed.err


def test_a_file_whose_name_is_no_text_is_read(folder: Path) -> None:
    (folder / f"{NO_TEXT}.yaml").write_text(JOB)
    ended = subprocess.run(
        [sys.executable, "-m", "finetune_cli.main", "validate", f"{NO_TEXT}.yaml"],
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, b"\\udcff.yaml  ok  FineTuneJob bot\n")


def test_the_words_about_a_mistake_are_none_themselves() -> None:
    problem = Problem(code="x", message="m" * 2000, fix="a\udcffb", field="f" * 600, file="\ud800")
    assert problem.message == "m" * 1021 + "..."
    assert problem.fix == "a\\udcffb"
    assert problem.field == "f" * 509 + "..."
    assert problem.file == "\\ud800"
