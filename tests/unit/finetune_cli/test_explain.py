"""`finetune explain`: every value, its origin and its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_cli.main import main

FILE = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: bot, namespace: team-a}
spec:
  model: {uri: pvc://models/tiny}
  dataset:
    train:
      - uri: pvc://datasets/train.jsonl
  method: {lora: {r: 8}}
  training:
    warmupSteps: 10
  resources:
    accelerator: {device: cpu, perNode: 0}
---
apiVersion: finetune.dev/v1alpha1
kind: FineTuneProfile
metadata: {name: small, annotations: {finetune.dev/is-default-profile: "true"}}
spec:
  defaults:
    training: {weightDecay: 0.1, warmupRatio: 0.1}
  limits: {runtime: 2h}
"""


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bot.yaml").write_text(FILE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "bot.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line.split(maxsplit=3) for line in lines]
    assert found[0] == ["FIELD", "VALUE", "ORIGIN", "REASON"]
    wanted = [
        ["profileRef.name", "small", "built-in", "the default profile of the cluster"],
        ["model.uri", "pvc://models/tiny", "user", "bot.yaml:5"],
        ["dataset.maxLength", "2048", "built-in"],
        ["method.lora.r", "8", "user", "bot.yaml:9"],
        ["method.lora.alpha", "32", "built-in"],
        ["objective.sft", "{}", "built-in", "the usual objective"],
        ["training.learningRate", "2e-4", "built-in", "the usual value for sft with lora"],
        ["training.epsilon", "1e-8", "built-in"],
        ["training.warmupSteps", "10", "user", "bot.yaml:11"],
        ["training.weightDecay", "0.1", "profile", "defaults of small"],
        ["training.precision", "fp32", "built-in", "the ranks compute on the CPU"],
        ["parallelism.ddp", "{}", "built-in", "one rank has nothing to divide"],
        ["resources.accelerator.device", "cpu", "user", "bot.yaml:13"],
        [
            "activeDeadlineSeconds",
            "7200",
            "built-in",
            "the most that profile small allows (limits.runtime)",
        ],
    ]
    assert [line for line in found if line in wanted] == wanted
    assert not any(line[0] == "training.warmupRatio" for line in found)
    # What is absent and what that means.
    assert any(
        line.split("  ")[0] == "dataset.packing"
        and line.rstrip().endswith("not set   on where it is proved for this model")
        for line in lines
    )
    # Columns are aligned.
    column = lines[0].index("ORIGIN")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)


def test_every_value_of_the_resolved_job_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "bot.yaml", "-o", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["name"], said["namespace"]) == ("bot", "team-a")
    values = {row["field"]: row for row in said["values"]}
    assert len(values) == len(said["values"])
    assert values["dataset.train"] == {
        "field": "dataset.train",
        "value": [{"uri": "pvc://datasets/train.jsonl", "weight": 1.0}],
        "origin": "user",
        "place": "bot.yaml:7",
        "reason": "",
    }
    assert values["training.globalBatchSize"] == {
        "field": "training.globalBatchSize",
        "value": None,
        "origin": "not set",
        "place": "",
        "reason": "the largest power of two up to 64 (and at least the world size) that leaves "
        "100 steps",
    }
    sections = [row["field"].split(".")[0] for row in said["values"]]
    assert list(dict.fromkeys(sections)) == [
        "profileRef",
        "model",
        "dataset",
        "method",
        "objective",
        "training",
        "parallelism",
        "resources",
        "backend",
        "workspace",
        "checkpoint",
        "recovery",
        "evaluation",
        "output",
        "suspend",
        "activeDeadlineSeconds",
    ]


def test_a_refused_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bot.yaml").write_text(FILE.replace("r: 8", "r: 0"), encoding="utf-8")
    assert main(["explain", "bot.yaml"]) == 10
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "bot.yaml:9:19 error  spec.method.lora.r must be at least 1, not 0 [out-of-range]\n"
        "                     fix: write r: 8 or r: 16; higher learns more and needs more memory\n"
    )


def test_a_file_with_two_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, other = (
        FILE.split("---\n", maxsplit=1)[0],
        FILE.split("---\n", maxsplit=1)[0].replace("bot", "cat"),
    )
    (tmp_path / "two.yaml").write_text(f"{job}---\n{other}", encoding="utf-8")
    assert main(["explain", "two.yaml"]) == 10
    assert capsys.readouterr().err == (
        "two.yaml error  the file holds 2 FineTuneJobs: bot, cat [which-job]\n"
        "                fix: choose one with --name\n"
    )
    assert main(["explain", "two.yaml", "--name", "cat"]) == 0
    assert "two.yaml:" in capsys.readouterr().out
    assert main(["explain", "two.yaml", "--name", "dog"]) == 10
    assert "fix: there are bot, cat" in capsys.readouterr().err
