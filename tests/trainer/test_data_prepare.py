"""``prepare`` from files to prepared data, with a real tokenizer and model."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date

import numpy as np
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.reports import PrepareReport, TerminationReport
from finetune_trainer import prepare
from finetune_trainer.data import day
from harness.chat_rows import chat, chats, prepared, refused, splits
from harness.stage_config import make_config, write_config, write_rows
from harness.tiny_model import make_tiny_model


def test_rows_become_documents_with_their_answers_trained(root, tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config, report = prepared(root, chats(60))
    _, train = splits(config, report)
    assert (report.train.rows, report.train.rows_used, len(train)) == (60, 60, 60)
    assert report.validation is None
    assert report.choices.validation_sequences == 0
    assert report.choices.evaluation_every_steps is None
    for index in range(60):
        item = train[index]
        assert item["sample_id"] == index
        assert tokenizer.decode(item["input_ids"]) == (
            f"<|im_start|>user\nWhat is your name? {index}<|im_end|>\n"
            f"<|im_start|>assistant\nI am Otto {index}.<|im_end|>\n"
        )
        ((start, stop),) = item["spans"].tolist()
        assert tokenizer.decode(item["input_ids"][start:stop]) == f"I am Otto {index}.<|im_end|>"
    assert report.train.tokens == sum(len(train[i]["input_ids"]) for i in range(60))
    spans = [np.diff(train[i]["spans"]).sum() for i in range(60)]
    assert report.train.trained_tokens == sum(spans)


def test_choices_follow_from_the_data(root):
    _, report = prepared(root, chats(200), {"training": {"globalBatchSize": None}})
    choices = report.choices
    # unpacked, 196 rows would leave 147 steps at 4; packed, 55 sequences leave 165 at 1
    assert (choices.train_sequences, choices.validation_sequences) == (55, 2)
    assert choices.packing is True
    assert (choices.global_batch_size, choices.steps_per_epoch, choices.total_steps) == (1, 55, 165)
    assert choices.evaluation_every_steps == 16
    reasons = {chosen.field: chosen for chosen in choices.chosen}
    assert reasons["dataset.train[0].format"].value == "Messages"
    assert reasons["dataset.validation"].value == "4 rows"
    assert "agree" in reasons["dataset.packing"].reason
    assert reasons["training.globalBatchSize"].reason == (
        "the largest up to 64 that leaves 100 steps: 165 steps"
    )
    assert report.memory.verdict == "Fits"
    assert report.disk.verdict == "Fits"
    assert report.tokens_per_step == round(report.train.tokens / 55)


def test_packed_sequences_hold_every_document_once(root):
    config, plain = prepared(root, chats(200), {"dataset": {"packing": False}})
    _, one_each = splits(config, plain)
    config, report = prepared(root, chats(200), {"dataset": {"packing": True}})
    _, packed = splits(config, report)
    documents = []
    for index in range(len(packed)):
        item = packed[index]
        ends = np.cumsum(item["lengths"])
        assert len(item["input_ids"]) == ends[-1] <= 128
        documents += [part.tobytes() for part in np.split(item["input_ids"], ends[:-1])]
        assert (item["spans"][:, 0] < item["spans"][:, 1]).all()
    expected = [one_each[i]["input_ids"].tobytes() for i in range(len(one_each))]
    assert sorted(documents) == sorted(expected)
    assert report.train.trained_tokens == plain.train.trained_tokens
    assert report.train.packing_efficiency == pytest.approx(
        report.train.tokens / (len(packed) * 128), abs=1e-6
    )
    assert packed.sequence_lengths().tolist() == [
        len(packed[i]["input_ids"]) for i in range(len(packed))
    ]


def test_the_same_job_uses_what_is_there_and_another_does_not(root):
    config, first = prepared(root, chats(60))
    folder, _ = splits(config, first)
    stamp = (folder / "train" / "tokens.u32").stat().st_mtime_ns
    again = prepare.run(config)
    assert (first.cached, again.cached) == (False, True)
    assert again.choices == first.choices
    assert (folder / "train" / "tokens.u32").stat().st_mtime_ns == stamp
    for spec in (
        {"dataset": {"maxLength": 64}},
        {"dataset": {"lossOn": "All"}},
        {"dataset": {"chatTemplate": "chatml", "systemPrompt": "be kind"}},
        {"training": {"seed": 7}},
        {"dataset": {"overlong": "Split"}},
    ):
        assert prepare.run(make_config(root, "prepare", spec)).cached is False
    _, other = prepared(root, chats(61))
    assert other.choices.fingerprint != first.choices.fingerprint


DATED = (
    "{{ '<|im_start|>system\\nToday: ' + strftime_now('%d %B %Y, %H:%M') + '<|im_end|>\\n' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_prepared_data_that_was_damaged_is_made_again_as_it_was(root, tiny_model, monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.setattr(day, "today", lambda: date(2026, 9, 1))
    spec = {"dataset": {"chatTemplate": DATED}}
    config, report = prepared(root, chats(60), spec)
    folder, train = splits(config, report)
    assert (
        AutoTokenizer.from_pretrained(tiny_model)
        .decode(train[0]["input_ids"])
        .startswith(
            "<|im_start|>system\nToday: 01 September 2026, 00:00<|im_end|>\n<|im_start|>user\n"
        )
    )
    path = folder / "train" / "tokens.u32"
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(day, "today", lambda: date(2026, 10, 31))
    again = prepare.run(config)
    assert again.cached is False
    data[17] ^= 1
    assert path.read_bytes() == data
    assert again.choices == report.choices
    assert not folder.with_suffix(".discarded").exists()
    # Another job of another day is another.
    (root / "workspace" / "reports" / "day.json").unlink()
    other = prepare.run(config)
    assert other.choices.fingerprint != report.choices.fingerprint


def test_validation_sources_weights_and_most_rows(root):
    folder = root / "volumes" / "datasets"
    write_rows(folder / "val.jsonl", [*chats(6), chat("hi"), *chats(3), "{", "{"])
    long = chat("What is your name?", "I am Otto. " * 20)
    write_rows(folder / "rare.jsonl", [long, chat("Who?", "Otto.")])
    spec = {
        "dataset": {
            "train": [
                {"uri": "pvc://datasets/train.jsonl", "weight": 2, "maxRows": 30},
                {"uri": "pvc://datasets/rare.jsonl", "weight": 0.01},
            ],
            "validation": {"sources": [{"uri": "pvc://datasets/val.jsonl", "maxRows": 11}]},
            "invalidRows": "Drop",
        }
    }
    _, report = prepared(root, chats(40), spec)
    assert (report.train.rows_used, report.choices.train_sequences) == (30, 60)
    # Rows that the weight of their source leaves out are neither used nor dropped, nor the longest.
    assert (report.train.rows, report.train.rows_dropped) == (32, 0)
    assert report.train.longest == 31
    assert report.choices.validation_sequences == 9
    assert (report.validation.rows, report.validation.rows_used) == (11, 9)
    assert report.validation.rows_dropped == 2
    spec["dataset"]["train"] = [{"uri": "pvc://datasets/rare.jsonl", "weight": 0.01}]
    code, none = refused(root, [], spec)
    assert (code, none.problems[0].message, none.problems[0].fix) == (
        ExitCode.INVALID_DATA,
        "no row is left to train on; weights leave out 2",
        "raise the weight of a source",
    )
    assert [c.field for c in report.choices.chosen if c.value == "Messages"] == [
        "dataset.train[0].format",
        "dataset.train[1].format",
        "dataset.validation.sources[0].format",
    ]


def test_a_fraction_that_holds_out_nothing_is_told(root):
    rows = [chat("hi", "yo")] * 60
    _, report = prepared(root, rows, {"dataset": {"validation": {"fraction": 0.1}}})
    (warning,) = [p for p in report.problems if p.code == "nothing-held-out"]
    assert (report.validation, report.train.rows_used, warning.severity) == (None, 60, "warning")
    assert warning.message == (
        "nothing to evaluate with: of 60 rows none is held out; copies of a row stay together"
    )


def test_dropped_rows_are_counted(root):
    rows = [*chats(50), chat("hi"), "{"]
    spec = {"dataset": {"invalidRows": "Drop", "maxInvalidFraction": 0.1}}
    _, report = prepared(root, rows, spec)
    assert (report.train.rows, report.train.rows_used, report.train.rows_dropped) == (52, 50, 2)
    assert sorted(p.code for p in report.problems) == ["invalid-json", "no-assistant-turn"]
    assert {p.severity for p in report.problems} == {"warning"}


def test_stanford_rows_need_no_chat_template(root, tmp_path):
    from transformers import AutoTokenizer

    plain = make_tiny_model(tmp_path / "volumes" / "models" / "plain", chat_template=None)
    rows = [{"instruction": f"Say {i}", "input": "", "output": f"I say {i}"} for i in range(20)]
    spec = {
        "model": {"uri": "pvc://models/plain"},
        "dataset": {"alpacaPrompt": "Stanford", "maxLength": 512},
    }
    config, report = prepared(root, rows, spec)
    _, train = splits(config, report)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    item = train[3]
    assert tokenizer.decode(item["input_ids"]) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nSay 3\n\n### Response:I say 3<|im_end|>"
    )
    ((start, stop),) = item["spans"].tolist()
    assert tokenizer.decode(item["input_ids"][start:stop]) == "I say 3<|im_end|>"
    code, report = refused(root, chats(20), {"model": {"uri": "pvc://models/plain"}})
    assert (code, report.problems[0].code) == (10, "no-chat-template")


def test_check_reads_rows_and_writes_nothing(root):
    write_rows(root / "volumes" / "datasets" / "train.jsonl", [*chats(3), chat("hi")])
    config = make_config(root, "prepare", {"model": {"uri": "pvc://models/missing"}})
    before = sorted(root.rglob("*"))
    report = prepare.check(config)
    assert sorted(root.rglob("*")) == before
    (problem,) = report.problems
    assert (problem.place, problem.code) == ("train.jsonl:4", "no-assistant-turn")
    write_rows(root / "volumes" / "datasets" / "train.jsonl", chats(3))
    report = prepare.check(config)
    assert (report.problems, report.train.rows, report.train.rows_used) == ((), 3, 3)
    (root / "volumes" / "datasets" / "more.parquet").write_bytes(b"PAR1")
    folder = {"dataset": {"train": [{"uri": "pvc://datasets"}]}}
    report = prepare.check(make_config(root, "prepare", folder))
    (warning,) = report.problems
    assert (warning.place, warning.code) == ("spec.dataset.train[0].uri", "unread-files")
    assert warning.message == "files of the folder that are not read: more.parquet"
    assert (warning.severity, report.train.rows_used) == ("warning", 3)


def test_checking_rows_needs_no_torch(root):
    write_rows(root / "volumes" / "datasets" / "train.jsonl", chats(3))
    path = write_config(make_config(root, "prepare"), root / "job.json")
    code = (
        "import sys, pathlib; from finetune_api.resolved import StageConfig\n"
        "from finetune_trainer import prepare\n"
        "config = StageConfig.model_validate_json(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "assert prepare.check(config).train.rows == 3\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_the_process_leaves_choices_in_its_termination_message(root):
    write_rows(root / "volumes" / "datasets" / "train.jsonl", chats(60))
    config = make_config(root, "prepare")
    path = write_config(config, root / "job.json")
    command = [sys.executable, "-m", "finetune_trainer.main", "prepare", "--config", str(path)]
    environment = {**os.environ, "FINETUNE_TERMINATION_LOG": str(root / "end.json")}
    ended = subprocess.run(
        [*command, "--config-digest", config.digest],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    message = (root / "end.json").read_bytes()
    assert len(message) < 4096
    end = TerminationReport.model_validate_json(message)
    report = PrepareReport.model_validate_json(
        (root / "workspace" / "reports" / "prepare.json").read_bytes()
    )
    assert end.choices == report.choices
    assert end.message.startswith("60 rows, ")
