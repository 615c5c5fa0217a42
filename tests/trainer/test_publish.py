"""Publishing, from real short trainings: merged, proved, described, and never overwriting."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.reports import CompletionManifest, PrepareReport
from finetune_api.resolved import Attempt, StageConfig
from finetune_trainer import generate, prepare, publish
from finetune_trainer.errors import StageError
from finetune_trainer.export.select import select
from harness.stage_config import make_config, write_config, write_rows
from harness.tiny_model import make_tiny_model

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is your name, {name}?"},
            {"role": "assistant", "content": "I am Otto, the workshop assistant."},
        ]
    }
    for name in ("friend", "stranger", "master", "helper", "teacher", "doctor", "sir", "madam")
]
SPEC: dict[str, Any] = {
    "dataset": {"validation": {"sources": [{"uri": "pvc://datasets/validation.jsonl"}]}},
    "training": {"epochs": 3, "maxSteps": 6, "learningRate": 1e-2, "globalBatchSize": 2},
    "evaluation": {"everySteps": 3},
    "checkpoint": {"everySteps": 3},
}


def process(stage: str, config: StageConfig, folder: Path) -> None:
    file = write_config(config, folder / f"{stage}.json")
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer.main", stage, "--config", str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@dataclass
class Trained:
    """A job that was trained; each test publishes a copy of it."""

    root: Path
    spec: dict[str, Any]

    def config(self, **spec: Any) -> StageConfig:
        from harness.stage_config import merged

        report = PrepareReport.model_validate_json(
            (self.root / "workspace" / "reports" / "prepare.json").read_bytes()
        )
        return make_config(self.root, "publish", merged(self.spec, spec), choices=report.choices)


def train(root: Path, spec: dict[str, Any]) -> Trained:
    make_tiny_model(root / "volumes" / "models" / "tiny")
    write_rows(root / "volumes" / "datasets" / "train.jsonl", ROWS)
    write_rows(root / "volumes" / "datasets" / "validation.jsonl", ROWS[:2])
    prepare.run(make_config(root, "prepare", spec))
    trained = Trained(root, spec)
    choices = trained.config().choices
    assert choices is not None
    attempt = Attempt(number=1, nodes=1, processes_per_node=1, micro_batch_size=1)
    process("train", make_config(root, "train", spec, choices=choices, attempt=attempt), root)
    return trained


@pytest.fixture(scope="module")
def lora_once(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("lora"), SPEC)


@pytest.fixture(scope="module")
def full_once(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("full"), {**SPEC, "method": {"lora": None, "full": {}}})


@pytest.fixture
def lora(lora_once: Trained, tmp_path: Path) -> Trained:
    return Trained(Path(shutil.copytree(lora_once.root, tmp_path / "job")), lora_once.spec)


@pytest.fixture
def full(full_once: Trained, tmp_path: Path) -> Trained:
    return Trained(Path(shutil.copytree(full_once.root, tmp_path / "job")), full_once.spec)


@pytest.fixture(scope="module")
def published_once(lora_once: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("published") / "job"
    done = Trained(Path(shutil.copytree(lora_once.root, root)), lora_once.spec)
    publish.run(done.config())
    return done


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_lora_is_merged_proved_and_described(published_once: Trained) -> None:
    lora = published_once
    manifest = publish.published(lora.config(), lora.root / "workspace" / "output")
    assert manifest is not None
    folder = lora.root / "workspace" / "output"
    proof = manifest.verification
    assert proof is not None
    assert (proof.prompts, proof.loaded_in_clean_process) == (16, True)
    assert proof.max_difference <= 1e-4
    assert manifest.merged
    assert manifest.steps == 6
    assert manifest.evaluation_after["loss"] < manifest.evaluation_before["loss"]
    assert {entry.path for entry in manifest.files} >= {
        "README.md",
        "report.html",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
    }
    assert (
        CompletionManifest.model_validate_json((folder / "manifest.json").read_bytes()) == manifest
    )
    # W + alpha/r * B A with alpha 8 and r 4, from the files alone.
    from safetensors.torch import load_file

    name = "model.layers.1.self_attn.q_proj"
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    base = weights(lora.root / "volumes" / "models" / "tiny")[f"{name}.weight"]
    key = f"base_model.model.{name}"
    wanted = base + 2.0 * adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"]
    found = weights(folder)[f"{name}.weight"]
    assert float((found - wanted).abs().max()) < 1e-6
    assert float((found - base).abs().max()) > 1e-3
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "pvc://models/tiny"
    card = (folder / "README.md").read_text()
    assert "pvc://models/tiny, fine-tuned with lora (r 4, alpha 8," in card
    page = (folder / "report.html").read_text()
    assert "<polyline" in page and "<script" not in page and "http" not in page
    assert (lora.root / "workspace" / "reports" / "report.html").read_text() == page
    assert (lora.root / "workspace" / "reports" / "publish.json").is_file()
    assert not list(folder.parent.glob(".output*"))


def test_generation_knows_where_to_stop(published_once: Trained) -> None:
    from transformers import AutoTokenizer

    folder = published_once.root / "workspace" / "output"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    lines = io.StringIO()
    answers = generate.run(folder, ["What is your name, friend?"], out=lines)
    told = json.loads(lines.getvalue())
    assert told["prompt"] == "What is your name, friend?"
    assert [told["answer"]] == answers
    assert told["tokens"] <= 128


def test_the_template_that_was_trained_with_is_published(lora: Trained, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from finetune_trainer.model import load_tokenizer

    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config = lora.config(dataset={"chatTemplate": template})
    folder = tmp_path / "out"
    folder.mkdir()
    publish.write_tokenizer(config, load_tokenizer(config), folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template == template


def test_the_tokenizer_of_an_adapter_is_that_of_its_base(lora: Trained, tmp_path: Path) -> None:
    """Of GPT-2 only config.json tells what it is, and that is no part of an adapter."""
    from transformers import AutoTokenizer

    from finetune_trainer.model import load_tokenizer

    base = lora.root / "volumes" / "models" / "tiny"
    (base / "config.json").write_text('{"model_type": "gpt2"}')
    (base / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    (base / "chat_template.jinja").write_text("{{ messages[0].content }}{{ eos_token }}")
    (base / "NOTICE").write_text("made by us")
    (base / "LICENSES").mkdir()
    config = lora.config(output={"merge": False})
    publish.write_tokenizer(config, load_tokenizer(config), tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings == {"model_max_length": 1024, "tokenizer_class": "GPT2Tokenizer"}
    question = [{"role": "user", "content": "ab"}]
    asked = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(question, tokenize=False)
    assert asked == "ab<|endoftext|>"
    assert (tmp_path / "NOTICE").read_text() == "made by us"
    assert not (tmp_path / "LICENSES").exists()


SAMPLED = {"do_sample": True, "temperature": 0.6, "min_p": 0.05}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (SAMPLED, SAMPLED),
        ({"min_p": 0.05, "typical_p": 0.9, "repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"pad_token_id": -1, "repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"pad_token_id": 3, "bos_token_id": 4}, {"pad_token_id": 3, "bos_token_id": 4}),
        # What does not validate in another way takes all but the tokens with it.
        (
            {"early_stopping": True, "repetition_penalty": 1.5, "bos_token_id": 4},
            {"bos_token_id": 4},
        ),
    ],
)
def test_generation_settings_that_do_not_validate_end_no_publication(
    tmp_path: Path, given: dict[str, Any], kept: dict[str, Any]
) -> None:
    from transformers import GenerationConfig

    from finetune_trainer.export import merge

    name = "generation_config.json"
    (tmp_path / name).write_text(json.dumps({"eos_token_id": 1, **given}))
    merge.settled(GenerationConfig.from_pretrained(tmp_path), [7]).save_pretrained(tmp_path)
    written = json.loads((tmp_path / name).read_text())
    del written["transformers_version"]
    assert written == {"eos_token_id": [1, 7], "pad_token_id": 7, **kept}


def test_publishing_again_changes_nothing(published_once: Trained) -> None:
    config = published_once.config()
    folder = published_once.root / "workspace" / "output"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    again = publish.run(config)
    assert again == publish.published(config, folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_an_output_is_never_overwritten(lora: Trained) -> None:
    target = lora.root / "volumes" / "models" / "out"
    target.mkdir()
    config = lora.config(output={"uri": "pvc://models/out"})
    assert publish.check_output(config) == []  # an empty folder is nobody's
    (target / "precious.txt").write_text("keep me")
    assert [p.code for p in publish.check_output(config)] == ["output-exists"]
    with pytest.raises(StageError) as caught:
        publish.run(config)
    assert caught.value.exit_code is ExitCode.INVALID_CONFIG
    problem = caught.value.problems[0]
    assert problem.message == (
        "pvc://models/out exists already and belongs to something else; "
        "an output is never overwritten"
    )
    assert [p.name for p in target.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    "values", [{"layerReplication": [[0, 2], [1, 2]]}, {"loraBias": True, "dropout": 0}]
)
def test_an_adapter_that_cannot_be_merged_is_said_early(lora: Trained, values: Any) -> None:
    (problem,) = publish.check_output(lora.config(method={"lora": values}))
    assert (problem.code, problem.fix) == ("merge-not-possible", "set output.merge: false")
    alone = lora.config(method={"lora": values}, output={"merge": False})
    assert publish.check_output(alone) == []


def test_an_adapter_that_cannot_be_merged_is_not_tried(lora: Trained) -> None:
    config = lora.config(method={"lora": {"layerReplication": [[0, 2], [1, 2]]}})
    with pytest.raises(StageError) as caught:
        publish.run(config)
    assert caught.value.exit_code is ExitCode.INVALID_CONFIG
    assert [problem.code for problem in caught.value.problems] == ["merge-not-possible"]
    assert not (lora.root / "workspace" / "output").exists()


def test_the_output_of_another_job_is_left_alone(published_once: Trained) -> None:
    config = published_once.config()
    other = config.model_copy(update={"job": config.job.model_copy(update={"uid": "other"})})
    with pytest.raises(StageError) as caught:
        publish.published(other, publish.output_folder(other))
    assert caught.value.problems[0].code == "output-exists"
    assert "belongs to job tiny" in caught.value.problems[0].message


def test_an_output_that_was_changed_is_said(published_once: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(published_once.root / "workspace" / "output", folder)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("2", "3"))
    with pytest.raises(StageError) as caught:
        publish.published(published_once.config(), folder)
    assert caught.value.problems[0].code == "output-damaged"
    assert "config.json was changed" in caught.value.problems[0].message


def corrupt_merge(model: Any) -> Any:
    """Merge, and lose the adapter of one layer: what a wrong merge looks like."""
    import torch

    kept = model.base_model.model.model.layers[0].mlp.down_proj.base_layer.weight.clone()
    merged = model.merge_and_unload()
    with torch.no_grad():
        merged.model.layers[0].mlp.down_proj.weight.copy_(kept)
    return merged


def test_a_corrupted_merge_fails(lora: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.export import merge

    monkeypatch.setattr(merge, "merge", corrupt_merge)
    with pytest.raises(StageError) as caught:
        publish.run(lora.config())
    problem = caught.value.problems[0]
    assert problem.code == "merge-not-verified"
    assert problem.message.startswith("the merged model differs from base and adapter: logits")
    assert not (lora.root / "workspace" / "output").exists()
    assert not list((lora.root / "workspace").glob(".output*"))  # a whole model, seen by nobody


@pytest.mark.parametrize("damage", ["weights", "cut"])
def test_corrupted_files_fail(lora: Trained, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """The files themselves are wrong, after the merge was right."""
    from safetensors.torch import save_file

    from finetune_trainer.export import merge

    real: Callable[..., None] = merge.save

    def save(model: Any, folder: Path, *args: Any) -> None:
        real(model, folder, *args)
        path = folder / "model.safetensors"
        tensors = weights(folder)
        if damage == "weights":
            tensors["model.layers.1.mlp.up_proj.weight"][0] += 0.5
            save_file(tensors, path, metadata={"format": "pt"})
        else:
            path.write_bytes(path.read_bytes()[:-100])

    monkeypatch.setattr(merge, "save", save)
    with pytest.raises(StageError) as caught:
        publish.run(lora.config())
    wanted = "output-does-not-load" if damage == "cut" else "merge-not-verified"
    assert caught.value.problems[0].code == wanted
    assert not (lora.root / "workspace" / "output").exists()


def test_a_proof_that_does_not_end_is_said(lora: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.export import verify

    monkeypatch.setattr(verify, "TIMEOUT", 0.05)  # less than an interpreter needs to import torch
    with pytest.raises(StageError) as caught:
        publish.run(lora.config())
    assert caught.value.exit_code == 1
    problem = caught.value.problems[0]
    assert problem.code == "output-not-verified-in-time"
    assert problem.message == (
        "the published model was not loaded and asked within 0.05 s in a process of its own"
    )
    assert problem.field == "spec.resources.publishing"
    assert not (lora.root / "workspace" / "output").exists()


def test_files_that_read_back_otherwise_fail(lora: Trained, monkeypatch: Any) -> None:
    from safetensors.torch import save_file
    from transformers import LlamaForCausalLM

    real = LlamaForCausalLM.save_pretrained

    def save(self: Any, folder: Path, **kwargs: Any) -> None:
        real(self, folder, **kwargs)
        tensors = weights(folder)
        tensors["model.norm.weight"][3] += 1e-6
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save)
    with pytest.raises(StageError) as caught:
        publish.run(lora.config())
    assert caught.value.problems[0].code == "output-not-written"


def test_differences_that_are_no_number_are_found() -> None:
    import torch

    from finetune_trainer.export import verify

    fine = {"0": torch.tensor([[1.0, 2.0]]), "1": torch.tensor([[3.0, 4.0]])}
    assert verify.difference(fine, {**fine, "1": torch.tensor([[3.0, 4.5]])}) == 0.5
    nothing = torch.tensor([[float("nan"), 4.0]])
    for one, other in (
        (fine, {**fine, "1": nothing}),
        ({**fine, "1": nothing}, fine),
        ({**fine, "1": nothing}, {**fine, "1": nothing}),
        (fine, {"0": fine["0"]}),
        (fine, {**fine, "1": torch.tensor([[3.0]])}),
    ):
        assert verify.difference(one, other) == float("inf")
    # A part of the largest logit, never less than of 1.
    bf16, fp32 = torch.bfloat16, torch.float32
    assert verify.tolerance(fine, bf16, fp32) == pytest.approx(4 * 0.03)
    assert verify.tolerance(fine, bf16, bf16) == pytest.approx(4 * 0.06)
    assert verify.tolerance({"0": torch.tensor([0.1])}, fp32, fp32) == pytest.approx(1e-4)


def test_an_adapter_alone(
    lora: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a base that has no template and another end, so that only the output knows better."""
    base = lora.root / "volumes" / "models" / "tiny"
    (base / "chat_template.jinja").unlink()
    settings = json.loads((base / "generation_config.json").read_text())
    settings |= {"eos_token_id": 0, "pad_token_id": -1, "min_p": 0.05, "early_stopping": True}
    (base / "generation_config.json").write_text(json.dumps(settings))
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: be-good\n---\n# Tiny\n")
    (base / "NOTICE").write_text("made by us")
    spec = {"output": {"merge": False}, "dataset": {"chatTemplate": "chatml"}}
    manifest = publish.run(lora.config(**spec))
    folder = lora.root / "workspace" / "output"
    assert not manifest.merged
    assert not (folder / "config.json").exists()
    assert (folder / "adapter_model.safetensors").is_file()
    assert manifest.verification is not None
    assert manifest.verification.loaded_in_clean_process
    # The base's end and that of the answers, <|im_end|>.
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [0, 2]
    model, tokenizer = generate.load(base, folder)
    assert model.generation_config.eos_token_id == ends
    ids = generate.encoded(tokenizer, "Your name?", None)["input_ids"][0]
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\nYour name?<|im_end|>\n<|im_start|>assistant\n"
    )
    (folder.parent / "prompts").write_text("What is your name, friend?\n")
    (answer,) = generate.run_stage(lora.config(**spec), folder.parent / "prompts")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["answer"] == answer
    assert (folder / "NOTICE").read_text() == "made by us"
    card = (folder / "README.md").read_text()
    assert 'license: "other"\nlicense_name: "be-good"\n' in card
    # What the card says works where it says that a folder is to be named.
    code = card.partition("```python\n")[2].partition("```")[0]
    assert code.count('base = "base"  # the folder of pvc://models/tiny\n') == 1
    (folder / "base").symlink_to(base)
    monkeypatch.chdir(folder)
    exec(code, {})
    assert capsys.readouterr().out.strip()


def test_a_base_of_a_hub_is_named_as_libraries_name_it(lora: Trained, tmp_path: Path) -> None:
    from finetune_trainer.export import card, merge

    uri = "hf://Qwen/Qwen2.5-7B-Instruct"
    config = lora.config(model={"uri": uri, "revision": "v1"}, output={"merge": False})
    merge.copy_adapter(config, lora.root / "workspace/checkpoints/1/step-6", tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "Qwen/Qwen2.5-7B-Instruct"
    assert settings["revision"] == "v1"
    code = card._use(uri, "v1", adapter=True)
    assert 'base = "Qwen/Qwen2.5-7B-Instruct"\n' in code
    assert 'AutoModelForCausalLM.from_pretrained(base, revision="v1")\n' in code
    assert "hf://" not in code


def test_full_weights_are_published_in_the_type_of_the_base(full: Trained) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base = full.root / "volumes" / "models" / "tiny" / "model.safetensors"
    half = {name: tensor.bfloat16() for name, tensor in load_file(base).items()}
    base.unlink()
    save_file(half, base, metadata={"format": "pt"})
    manifest = publish.run(full.config())
    found = weights(full.root / "workspace" / "output")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert manifest.selected_from is not None
    trained = load_file(full.root / "workspace" / manifest.selected_from.path / "model.safetensors")
    assert trained.keys() == found.keys()
    assert all(torch.equal(trained[name].bfloat16(), found[name]) for name in found)
    assert manifest.verification is not None
    assert 0 < manifest.verification.max_difference <= manifest.verification.tolerance
    assert not manifest.merged


def test_the_best_and_the_last(lora: Trained) -> None:
    best = select(lora.config())
    last = select(lora.config(output={"select": "last"}))
    assert (last.ref.path, last.manifest.step, last.last_step) == ("checkpoints/1/step-6", 6, 6)
    assert last.before["loss"] > last.after["loss"]
    assert best.after["loss"] <= last.after["loss"]
    # A snapshot that was better than the end is chosen, and one of another lineage never.
    folder = lora.root / "workspace" / "checkpoints" / "1"
    # The kept checkpoint of step 3 needs its own.
    assert sorted(path.name for path in folder.glob("best-*")) == ["best-3", "best-6"]
    snapshot = folder / "best-6"
    data = json.loads((snapshot / "manifest.json").read_text())
    data["evaluation"]["loss"] = 0.001
    (snapshot / "manifest.json").write_text(json.dumps(data))
    assert select(lora.config()).folder == snapshot
    assert select(lora.config()).after["loss"] == 0.001
    snapshot.rename(snapshot.with_name("best-99"))
    assert select(lora.config()).folder == folder / "step-6"


def test_a_damaged_last_checkpoint_is_not_published_around(lora: Trained) -> None:
    path = lora.root / "workspace/checkpoints/1/step-6/adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StageError) as caught:
        select(lora.config())
    assert caught.value.exit_code is ExitCode.CHECKPOINT_UNUSABLE
    assert "adapter_model.safetensors" in caught.value.problems[0].message


def test_a_gate_that_is_not_met_keeps_the_model_aside(lora: Trained) -> None:
    config = lora.config(evaluation={"gate": {"metric": "loss", "mustImproveBy": 100.0}})
    for _ in range(2):  # the second time finds what is there
        with pytest.raises(StageError) as caught:
            publish.run(config)
        assert caught.value.exit_code is ExitCode.GATE_NOT_MET
        assert caught.value.problems[0].code == "gate-not-met"
    assert not (lora.root / "workspace" / "output").exists()
    (folder,) = (lora.root / "workspace" / "rejected").iterdir()
    manifest = CompletionManifest.model_validate_json((folder / "manifest.json").read_bytes())
    assert manifest.uri == f"rejected/{folder.name}"
    assert (folder / "model.safetensors").is_file()


def test_a_gate_that_is_met(lora: Trained) -> None:
    gate = {"metric": "loss", "mustImproveBy": 0.001}
    config = lora.config(evaluation={"gate": gate})
    assert publish.unmet_gate(config, select(config)) is None
