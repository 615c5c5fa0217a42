"""What ``prepare`` says of rows, files and values that cannot be used."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file, save_file

from finetune_api.exit_codes import ExitCode
from finetune_trainer import fetch
from finetune_trainer.data import prepared
from harness.chat_rows import chat, chats, refused
from harness.tiny_model import make_tiny_model


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


@pytest.mark.parametrize("kept", [slice(10, None), slice(0, 0)], ids=["other rows", "gone"])
@pytest.mark.parametrize(
    ("module", "name"), [(fetch, "materialise"), (prepared, "_build")], ids=["model", "tokens"]
)
def test_rows_that_change_after_they_were_checked(root, monkeypatch, module, name, kept):
    path = root / "volumes" / "datasets" / "train.jsonl"
    real = getattr(module, name)

    def meanwhile(*args):
        monkeypatch.setattr(module, name, real)
        lines = path.read_text().splitlines(keepends=True)[kept]
        path.write_text("".join(lines))
        if not lines:
            path.unlink()
        return real(*args)

    monkeypatch.setattr(module, name, meanwhile)
    code, report = refused(root, chats(60), {"dataset": {"validation": {"fraction": 0.1}}})
    assert (code, [p.code for p in report.problems]) == (ExitCode.INVALID_DATA, ["data-changed"])
    assert report.problems[0].message == "a data file changed after its rows were checked"


def test_a_model_that_lacks_a_weight_is_refused_before_a_row_is_tokenised(root):
    own = root / "volumes" / "own"
    shutil.copytree(root / "volumes" / "models" / "tiny", own / "short")
    tensors = load_file(own / "short" / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, own / "short" / "model.safetensors", metadata={"format": "pt"})
    code, report = refused(root, chats(3), {"model": {"uri": "pvc://own/short"}})
    assert (code, report.problems[0].code) == (
        ExitCode.MODEL_UNAVAILABLE,
        "model-weights-incomplete",
    )
    assert "it has no model.norm.weight" in report.problems[0].message
    assert not (root / "workspace" / "prepared").exists()


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
        (
            {"training": {"maxSteps": 7, "warmupSteps": 7}},
            10,
            "warmup-too-long",
            "set warmupSteps to less than 7, or use warmupRatio",
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
