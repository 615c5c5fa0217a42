"""``prepare`` from files to prepared data, with a real tokenizer and model."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.names import Layout
from finetune_api.reports import PrepareReport, TerminationReport
from finetune_trainer import prepare
from finetune_trainer.data import cache
from finetune_trainer.errors import StageError
from harness.stage_config import make_config, write_config, write_rows
from harness.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def root(tmp_path, model):
    folder = tmp_path / "volumes" / "models"
    folder.mkdir(parents=True)
    (folder / "tiny").symlink_to(model)
    return tmp_path


def chat(*turns: str, system: str | None = None) -> dict:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [
        {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)
    ]
    return {"messages": messages}


def chats(count: int) -> list[dict]:
    return [chat(f"What is your name? {i}", f"I am Otto {i}.") for i in range(count)]


def prepared(root: Path, rows, spec=None):
    write_rows(root / "volumes" / "datasets" / "train.jsonl", rows)
    config = make_config(root, "prepare", spec)
    return config, prepare.run(config)


def splits(config, report):
    folder = cache.folder_of(
        Layout(Path(config.mounts.workspace)).prepared, report.choices.fingerprint
    )
    return folder, cache.PreparedDataset(folder / "train")


def refused(root: Path, rows, spec=None) -> tuple[int, PrepareReport]:
    with pytest.raises(StageError) as caught:
        prepared(root, rows, spec)
    text = (root / "workspace" / "reports" / "prepare.json").read_text()
    report = PrepareReport.model_validate_json(text)
    assert report.choices is None
    assert [p.code for p in report.problems] == [p.code for p in caught.value.problems]
    return int(caught.value.exit_code), report


def test_rows_become_documents_with_their_answers_trained(root, model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
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


def test_prepared_data_that_was_damaged_is_made_again(root):
    config, report = prepared(root, chats(60))
    folder, _ = splits(config, report)
    path = folder / "train" / "tokens.u32"
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(data)
    again = prepare.run(config)
    assert again.cached is False
    data[17] ^= 1
    assert path.read_bytes() == data
    assert not folder.with_suffix(".discarded").exists()


def test_validation_sources_and_weights(root):
    write_rows(root / "volumes" / "datasets" / "val.jsonl", chats(10))
    spec = {
        "dataset": {
            "train": [{"uri": "pvc://datasets/train.jsonl", "weight": 2}],
            "validation": {"sources": [{"uri": "pvc://datasets/val.jsonl"}]},
        }
    }
    _, report = prepared(root, chats(30), spec)
    assert (report.train.rows_used, report.choices.train_sequences) == (30, 60)
    assert report.choices.validation_sequences == 10


def test_every_wrong_row_is_told_before_the_model_is_read(root):
    rows = [chat("hi"), *chats(3), '{"messages": [', chat("hi", "yo"), chat("x")]
    code, report = refused(root, rows, {"model": {"uri": "pvc://models/missing"}})
    assert code == ExitCode.INVALID_DATA
    assert [(p.place, p.code, p.count) for p in report.problems] == [
        ("train.jsonl:1", "no-assistant-turn", 2),
        ("train.jsonl:5", "invalid-json", 1),
    ]
    assert report.problems[0].message == "no assistant turn, nothing to learn from (2 rows: 1, 7)"
    assert not (root / "workspace" / "prepared").exists()


def test_dropped_rows_are_counted(root):
    rows = [*chats(50), chat("hi"), "{"]
    spec = {"dataset": {"invalidRows": "Drop", "maxInvalidFraction": 0.1}}
    _, report = prepared(root, rows, spec)
    assert (report.train.rows, report.train.rows_used, report.train.rows_dropped) == (52, 50, 2)
    assert sorted(p.code for p in report.problems) == ["invalid-json", "no-assistant-turn"]
    assert {p.severity for p in report.problems} == {"warning"}


def test_missing_and_empty_files(root):
    code, report = refused(
        root, chats(1), {"dataset": {"train": [{"uri": "pvc://datasets/trian.jsonl"}]}}
    )
    (problem,) = report.problems
    assert code == ExitCode.INVALID_DATA
    assert f"{problem.place} {problem.message} [{problem.code}] {problem.fix}" == (
        "spec.dataset.train[0].uri pvc://datasets/trian.jsonl does not exist [file-not-found] "
        "did you mean pvc://datasets/train.jsonl? (in it: train.jsonl)"
    )
    code, report = refused(root, [])
    assert (code, report.problems[0].code) == (ExitCode.INVALID_DATA, "empty-file")


def test_target_modules_that_match_nothing(root):
    code, report = refused(root, chats(20), {"method": {"lora": {"targetModules": ["q_prj"]}}})
    assert (code, report.problems[0].code) == (ExitCode.INVALID_CONFIG, "target-not-found")
    assert "did you mean q_proj?" in report.problems[0].fix


@pytest.mark.parametrize(
    ("spec", "code", "problem", "fix"),
    [
        (
            {"dataset": {"chatTemplate": "llama3"}},
            10,
            "template-token-missing",
            "leave dataset.chatTemplate out: the tokenizer has its own",
        ),
        (
            {"dataset": {"chatTemplate": "chatlm"}},
            10,
            "unknown-chat-template",
            "did you mean chatml? names: chatml llama3 mistral gemma",
        ),
        (
            {"dataset": {"chatTemplate": "{% for m in %}"}},
            10,
            "invalid-chat-template",
            "correct the template",
        ),
        (
            {"dataset": {"maxLength": 12}},
            11,
            "nothing-trained",
            "shorten the prompt, raise dataset.maxLength, or set dataset.invalidRows: Drop with "
            "maxInvalidFraction: 0.01",
        ),
        (
            {"dataset": {"maxLength": 24, "overlong": "Fail"}},
            11,
            "row-too-long",
            "shorten it, raise dataset.maxLength, or set dataset.overlong: Truncate",
        ),
        (
            {"dataset": {"maxLength": 24, "overlong": "Drop"}},
            11,
            "no-rows",
            "raise dataset.maxLength or set dataset.overlong: Truncate",
        ),
        (
            {"training": {"globalBatchSize": 64}},
            10,
            "batch-larger-than-data",
            "a smaller spec.training.globalBatchSize, more rows, or dataset.packing: false",
        ),
        (
            {"evaluation": {"gate": {}}},
            10,
            "no-validation-rows",
            "set dataset.validation.fraction or dataset.validation.sources",
        ),
    ],
)
def test_what_a_user_has_to_mend(root, spec, code, problem, fix):
    found, report = refused(root, chats(20), spec)
    assert (found, report.problems[0].code, report.problems[0].fix) == (code, problem, fix)


def test_rows_that_only_the_template_refuses(root):
    strict = (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    rows = [*chats(20), chat("hi", "yo", system="be kind")]
    code, report = refused(root, rows, {"dataset": {"chatTemplate": strict}})
    (problem,) = report.problems
    assert code == ExitCode.INVALID_DATA
    assert f"{problem.place} {problem.message} [{problem.code}]" == (
        "train.jsonl:21 the chat template refuses this row: System role not supported "
        "[template-refuses-row]"
    )


def test_rows_longer_than_the_model(root, tmp_path):
    from transformers import AutoConfig

    short = make_tiny_model(tmp_path / "volumes" / "models" / "short")
    config = AutoConfig.from_pretrained(short)
    config.max_position_embeddings = 16
    config.save_pretrained(short)
    code, report = refused(root, chats(20), {"model": {"uri": "pvc://models/short"}})
    assert (code, report.problems[0].code) == (ExitCode.INVALID_CONFIG, "longer-than-model")
    assert report.problems[0].fix == "set dataset.maxLength: 16"


def test_a_model_folder_without_config(root):
    (root / "volumes" / "models" / "empty").mkdir()
    code, report = refused(root, chats(20), {"model": {"uri": "pvc://models/empty"}})
    assert (code, report.problems[0].code) == (16, "model-config-missing")


def test_no_room_on_the_disk_is_said_before_anything_is_written(root, monkeypatch):
    import shutil

    usage = shutil.disk_usage(root)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, report = refused(root, chats(20))
    assert (code, report.problems[0].code) == (14, "no-room")
    assert [path for path in (root / "workspace" / "prepared").iterdir() if path.is_dir()] == []


def test_a_job_that_cannot_fit_ends_here_with_its_report(root):
    code, report = refused(root, chats(20), {"resources": {"memory": "1Mi"}})
    assert (code, report.problems[0].code) == (12, "does-not-fit")
    assert report.memory.verdict == "DoesNotFit"
    assert report.train.rows == 20


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


# --- kills and locks ------------------------------------------------------------------------------


def _stalled(config_json: str, reached: str) -> None:
    """Prepare, but stop for good in the middle of writing the tokens."""
    from finetune_api.resolved import StageConfig
    from finetune_trainer.data.cache import SplitWriter

    add = SplitWriter.add

    def slow(self, ids, spans):
        if len(self.lengths) == 40:
            for column in self._columns.values():
                column._flush()
                column._file.flush()
            Path(reached).touch()
            time.sleep(600)
        return add(self, ids, spans)

    SplitWriter.add = slow
    prepare.run(StageConfig.model_validate_json(config_json))


def _start_stalled(config, reached: Path) -> multiprocessing.Process:
    context = multiprocessing.get_context("fork")
    process = context.Process(
        target=_stalled, args=(json.dumps(config.to_json()), str(reached)), daemon=True
    )
    process.start()
    deadline = time.monotonic() + 120
    while not reached.exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_killed_while_writing_the_next_one_starts_clean(root):
    write_rows(root / "volumes" / "datasets" / "train.jsonl", chats(60))
    config = make_config(root, "prepare")
    process = _start_stalled(config, root / "reached")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    folder = root / "workspace" / "prepared"
    (partial,) = [path for path in folder.iterdir() if path.is_dir()]
    assert partial.suffix == ".partial"
    assert (partial / "train" / "tokens.u32").stat().st_size > 0
    with pytest.raises(FileNotFoundError):
        cache.PreparedDataset(partial / "train")
    report = prepare.run(config)
    assert report.cached is False
    folders = [path for path in folder.iterdir() if path.is_dir()]
    assert folders == [cache.folder_of(folder, report.choices.fingerprint)]
    assert cache.verified(folders[0], report.choices.fingerprint) is not None
    assert len(cache.PreparedDataset(folders[0] / "train")) == 60


def test_what_a_killed_process_left_of_other_data_is_removed_too(root):
    write_rows(root / "volumes" / "datasets" / "train.jsonl", chats(60))
    process = _start_stalled(make_config(root, "prepare"), root / "reached")
    folder = root / "workspace" / "prepared"
    live = prepare.run(make_config(root, "prepare", {"training": {"seed": 1}}))
    assert len(list(folder.glob("*.partial"))) == 1  # its process still holds its lock
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    other = prepare.run(make_config(root, "prepare", {"training": {"seed": 2}}))
    assert sorted(path for path in folder.iterdir() if path.is_dir()) == sorted(
        cache.folder_of(folder, report.choices.fingerprint) for report in (live, other)
    )


def test_two_at_once_the_second_waits_and_uses_the_first(root):
    fingerprint = "sha256:" + "a" * 64
    told: list[str] = []
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()

    def hold() -> None:
        with cache.locked(root / "prepared", fingerprint, lambda: None):
            held.set()
            done.wait(60)

    process = context.Process(target=hold, daemon=True)
    process.start()
    assert held.wait(60)

    def waiting() -> None:
        told.append("waiting")
        done.set()

    with cache.locked(root / "prepared", fingerprint, waiting):
        process.join(60)
        assert process.exitcode == 0
    assert told == ["waiting"]
