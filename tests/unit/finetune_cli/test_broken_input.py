"""What `finetune validate` prints, to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_cli.main import main

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: bot}
spec:
  model: {uri: pvc://models/tiny}
  dataset:
    train:
      - uri: pvc://datasets/train.jsonl
"""
CONFIG: dict[str, tuple[str, str]] = {
    "misspelt field": (
        JOB + "  method: {lora: {}}\n  trainning: {epochs: 1}\n",
        """\
bot.yaml:10:3 error  unknown field spec.trainning [unknown-field]
                     fix: did you mean spec.training?
""",
    ),
    "the name of another tool": (
        JOB + "  method: {lora: {}}\n  training:\n      per_device_train_batch_size: 4\n",
        """\
bot.yaml:11:7 error  unknown field spec.training.per_device_train_batch_size [unknown-field]
                     fix: spec.training.microBatchSize (per GPU), or leave it out and set globalBatchSize
""",
    ),
    "r is 0": (
        JOB + "  method: {lora: {r: 0}}\n",
        """\
bot.yaml:9:19 error  spec.method.lora.r must be at least 1, not 0 [out-of-range]
                     fix: write r: 8 or r: 16; higher learns more and needs more memory
""",
    ),
    "nothing behind full": (
        JOB + "  method:\n    full:\n",
        """\
bot.yaml:10:5 error  spec.method.full has nothing behind it [empty-section]
                     fix: write full: {}
""",
    ),
    "two methods": (
        JOB + "  method:\n    lora: {}\n    full: {}\n",
        """\
bot.yaml:9:3 error  spec.method must hold exactly one of full, lora, houlsby, prefixTuning, promptTuning and pTuning [method-exactly-one]
                    fix: write one of them, with {} behind it where it needs no values: method: {full: {}}
""",
    ),
    "the ranks do not divide the batch": (
        JOB
        + """\
  method: {full: {}}
  training:
    globalBatchSize: 64
  resources: {nodes: 2, accelerator: {perNode: 3}}
""",
        """\
bot.yaml:11:5 error  globalBatchSize 64 cannot be divided by 6 (6 ranks) [world-divides]
                     fix: set globalBatchSize to 60 or 66
""",
    ),
    "the micro batch does not divide the batch": (
        JOB
        + """\
  method: {full: {}}
  training: {globalBatchSize: 64, microBatchSize: 12}
  resources: {nodes: 2}
""",
        """\
bot.yaml:10:35 error  globalBatchSize 64 cannot be divided by 24 (2 ranks x microBatchSize 12) [micro-batch-divides]
                      fix: set microBatchSize to 8, or globalBatchSize to 48 or 72
""",
    ),
    "16-bit weights under DeepSpeed": (
        JOB
        + """\
  method: {full: {}}
  training: {precision: pureBf16}
  parallelism: {deepspeed: {zeroStage: 2}}
""",
        """\
bot.yaml:10:14 error  pureBf16 has no meaning under DeepSpeed, which keeps fp32 master weights [pure-bf16-under-deepspeed]
                      fix: use precision: bf16, or parallelism: {ddp: {}}
""",
    ),
    "several at once, in the order of the file": (
        JOB
        + """\
  training:
    precission: bf16
    epochs: "3"
  method: {lora: {r: 0}, full: }
  objectve: {}
""",
        """\
bot.yaml:10:5  error  unknown field spec.training.precission                  [unknown-field]
                      fix: did you mean spec.training.precision?
bot.yaml:11:5  error  spec.training.epochs must be a number, not the text "3" [wrong-type]
                      fix: remove the quotes: 3
bot.yaml:12:19 error  spec.method.lora.r must be at least 1, not 0            [out-of-range]
                      fix: write r: 8 or r: 16; higher learns more and needs more memory
bot.yaml:12:26 error  spec.method.full has nothing behind it                  [empty-section]
                      fix: write full: {}
bot.yaml:13:3  error  unknown field spec.objectve                             [unknown-field]
                      fix: did you mean spec.objective?
""",
    ),
    "no spec": (
        "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: bot}\n",
        """\
bot.yaml:1:1 error  spec is missing [missing-field]
                    fix: write spec: {model: ..., dataset: ..., method: ...}
""",
    ),
    "a section at the wrong depth": (
        "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: bot}\nspce: {}\nspec: {}\n",
        """\
bot.yaml:4:1 error  unknown field spce [unknown-field]
                    fix: did you mean spec?
""",
    ),
    "another version": (
        JOB.replace("v1alpha1", "v1") + "  method: {lora: {}}\n",
        """\
bot.yaml:1:1 error  this release does not know the version "finetune.dev/v1" [wrong-api-version]
                    fix: write apiVersion: finetune.dev/v1alpha1
""",
    ),
    "a misspelt kind": (
        JOB.replace("FineTuneJob", "FinetuneJob") + "  method: {lora: {}}\n",
        """\
bot.yaml:2:1 error  there is no kind "FinetuneJob" [wrong-kind]
                    fix: did you mean FineTuneJob?
""",
    ),
    "another object": (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n",
        """\
bot.yaml:2:1 error  kind "ConfigMap" of "v1" is neither FineTuneJob nor FineTuneProfile [wrong-kind]
                    fix: write kind: FineTuneJob
""",
    ),
    "a list": (
        "- a\n- b\n",
        """\
bot.yaml:1:1 error  an object is wanted, not a list [wrong-type]
                    fix: begin with apiVersion: finetune.dev/v1alpha1 and kind: FineTuneJob
""",
    ),
    "a key twice": (
        JOB + "  method: {lora: {}}\n  dataset: {}\n",
        """\
bot.yaml:10:3 error  spec.dataset is written twice, first on line 6 [duplicate-key]
                     fix: keep one of the two
""",
    ),
    "a tab": (
        JOB + "  method:\n\tlora: {}\n",
        """\
bot.yaml:10:1 error  a tab; YAML is indented with spaces [yaml-tab]
                     fix: replace it by spaces
""",
    ),
    "a bracket that is never closed": (
        JOB + "  method: {lora: {}\n",
        """\
bot.yaml:10:1 error  not valid YAML: while parsing a flow mapping expected ',' or '}', but got '<stream end>' [yaml-syntax]
                     fix: check brackets and commas; { and [ have to be closed
""",
    ),
    "an alias of nothing": (
        JOB + "  method: *mine\n",
        """\
bot.yaml:9:11 error  the alias *mine names nothing that stands above [yaml-alias]
                     fix: add &mine to a value above
""",
    ),
    "an empty file": (
        "# nothing yet\n",
        """\
bot.yaml error  the file is empty [empty-file]
                fix: write a job: apiVersion: finetune.dev/v1alpha1, kind: FineTuneJob, metadata: {name: ...}, spec: {model: {uri: ...}, dataset: {train: [{uri: ...}]}, method: {lora: {}}}
""",
    ),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CONFIG)
def test_config(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, said = CONFIG[case]
    (here / "bot.yaml").write_text(text, encoding="utf-8")
    assert main(["validate", "bot.yaml"]) == 10
    assert capsys.readouterr() == (said, "")


def test_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "bot.yaml"]) == 10
    assert capsys.readouterr().out == (
        "bot.yaml error  there is no such file [file-not-found]\n"
        "                fix: check the path\n"
    )


def test_a_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "jobs").mkdir()
    (here / "jobs" / "bot.yaml").write_text(JOB, encoding="utf-8")
    assert main(["validate", "jobs"]) == 10
    assert capsys.readouterr().out == (
        "jobs error  this is a folder, not a file [is-a-folder]\n"
        "            fix: name one file: jobs/bot.yaml\n"
    )


def test_a_binary_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "model.safetensors").write_bytes(b"\x08\x00\x00\xff{}")
    assert main(["validate", "model.safetensors"]) == 10
    assert capsys.readouterr().out == (
        "model.safetensors error  this is not a text file in UTF-8 [not-text]\n"
        "                         fix: name a FineTuneJob file in YAML or JSON\n"
    )


def test_a_valid_job(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bot.yaml").write_text(JOB + "  method: {lora: {}}\n", encoding="utf-8")
    assert main(["validate", "bot.yaml"]) == 0
    assert capsys.readouterr().out == "bot.yaml  ok  FineTuneJob bot\n"


def test_a_job_and_its_profile_in_one_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "both.yaml").write_text(
        JOB
        + """\
  method: {lora: {}}
  resources: {nodes: 3}
---
apiVersion: finetune.dev/v1alpha1
kind: FineTuneProfile
metadata: {name: small, annotations: {finetune.dev/is-default-profile: "true"}}
spec:
  limits: {nodes: 2}
""",
        encoding="utf-8",
    )
    assert main(["validate", "both.yaml"]) == 10
    assert capsys.readouterr().out == (
        "both.yaml:10:15 error  spec.resources.nodes is 3; profile small allows at most 2"
        " (limits.nodes) [over-limit]\n"
        "                       fix: lower nodes to 2, or ask who runs the cluster\n"
    )


def test_a_profile_of_its_own_counts_as_the_default(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "bot.yaml").write_text(JOB + "  method: {full: {}}\n", encoding="utf-8")
    (here / "p.yaml").write_text(
        "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneProfile\nmetadata: {name: p}\n"
        "spec: {allow: {methods: [lora]}}\n",
        encoding="utf-8",
    )
    assert main(["validate", "bot.yaml", "--profile", "p.yaml"]) == 10
    assert capsys.readouterr().out == (
        "bot.yaml:9:12 error  spec.method.full is not allowed by profile p (allow.methods: lora)"
        " [not-allowed]\n"
        "                     fix: use one of lora, or ask who runs the cluster to allow it\n"
    )


def test_a_broken_profile(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "p.yaml").write_text(
        "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneProfile\nmetadata: {name: p}\n"
        "spec:\n  limits: {nodes: 0}\n  defaults: {training: {epoch: 3}}\n",
        encoding="utf-8",
    )
    assert main(["validate", "p.yaml"]) == 10
    assert capsys.readouterr().out == (
        "p.yaml:5:12 error  spec.limits.nodes must be at least 1, not 0 [out-of-range]\n"
        "                   fix: write nodes: with a value that is at least 1\n"
        "p.yaml:6:25 error  unknown field spec.defaults.training.epoch  [unknown-field]\n"
        "                   fix: did you mean spec.defaults.training.epochs?\n"
    )


def test_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    (here / "bot.yaml").write_text(JOB + "  method: {lora: {r: 0}}\n", encoding="utf-8")
    assert main(["validate", "bot.yaml", "-o", "json"]) == 10
    assert json.loads(capsys.readouterr().out) == {
        "valid": False,
        "problems": [
            {
                "code": "out-of-range",
                "message": "spec.method.lora.r must be at least 1, not 0",
                "fix": "write r: 8 or r: 16; higher learns more and needs more memory",
                "field": "spec.method.lora.r",
                "file": "bot.yaml",
                "line": 9,
                "column": 19,
                "rows": [],
                "count": 1,
                "severity": "error",
            }
        ],
        "notes": [],
    }


# --- rows -----------------------------------------------------------------------------------------


def test_rows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bot.yaml").write_text(JOB + "  method: {lora: {}}\n", encoding="utf-8")
    (here / "data").mkdir()
    good = (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    (here / "data" / "train.jsonl").write_text(
        good + '{"messages": [{"role": "user", "content": "a"}]}\n' + good, encoding="utf-8"
    )
    assert main(["validate", "bot.yaml", "--data", "--volume", "datasets=data"]) == 11
    assert capsys.readouterr().out == (
        "train.jsonl:2 error  no assistant turn, nothing to learn from [no-assistant-turn]\n"
        "                     fix: add the answer, or set dataset.invalidRows: Drop with"
        " maxInvalidFraction: 0.01\n"
    )
    (here / "data" / "train.jsonl").write_text(good * 3, encoding="utf-8")
    assert main(["validate", "bot.yaml", "--data", "--volume", "datasets=data"]) == 0
    assert "bot.yaml  ok  3 of 3 rows can be used\n" in capsys.readouterr().out
    assert sorted(path.name for path in here.rglob("*")) == ["bot.yaml", "data", "train.jsonl"]


def test_rows_without_a_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bot.yaml").write_text(JOB + "  method: {lora: {}}\n", encoding="utf-8")
    assert main(["validate", "bot.yaml", "--data"]) == 10
    assert capsys.readouterr().out == (
        "bot.yaml:8:9 error  no folder stands for the claim datasets on this machine"
        " [volume-not-given]\n"
        "                    fix: add --volume datasets=FOLDER, a folder with train.jsonl in it\n"
    )
