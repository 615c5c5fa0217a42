"""Folders of models without a model's library: which files count, and what is refused at once."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_trainer import fetch
from finetune_trainer.errors import StageError
from finetune_trainer.weights import weight_files

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 11421896\n"
INDEX = "model.safetensors.index.json"


def weights(path: Path) -> None:
    head = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"\0\0\0\0")


def model(folder: Path, shards: int = 1, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (folder / "tokenizer.json").write_text("{}")
    if shards == 1:
        weights(folder / "model.safetensors")
        return folder
    names = [f"model-{n}-of-{shards}.safetensors" for n in range(1, shards + 1)]
    for name in names:
        weights(folder / name)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict(zip("abc", names, strict=False))}))
    return folder


def refusal(folder: Path) -> Problem:
    with pytest.raises(StageError) as caught:
        fetch.check_folder(folder, "pvc://models/m")
    assert caught.value.exit_code is ExitCode.MODEL_UNAVAILABLE
    return caught.value.problems[0]


@pytest.mark.parametrize("shards", [1, 3])
def test_weights_are_the_files_that_the_library_reads(tmp_path: Path, shards: int) -> None:
    folder = model(tmp_path / "m", shards)
    fetch.check_folder(folder, "pvc://models/m")
    found, all_files = weight_files(folder), fetch.model_files(folder)
    assert len(found) == shards
    for extra in ("consolidated.safetensors", "model.fp16.safetensors"):
        weights(folder / extra)
    (folder / "consolidated.00.safetensors").write_bytes(b"cut short")
    fetch.check_folder(folder, "pvc://models/m")
    assert (weight_files(folder), fetch.model_files(folder)) == (found, all_files)


def test_an_index_that_was_left_beside_whole_weights_is_not_read(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", 3)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert refusal(folder).code == "model-shard-missing"
    weights(folder / "model.safetensors")
    fetch.check_folder(folder, "pvc://models/m")
    assert weight_files(folder) == [folder / "model.safetensors"]


def test_weights_of_another_name_are_none(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    problem = refusal(folder)
    assert problem.code == "model-weights-missing"
    assert problem.message == (
        "pvc://models/m has consolidated.safetensors, and neither model.safetensors nor "
        "model.safetensors.index.json"
    )


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("config.json", "model-config-invalid"),
        (INDEX, "model-weights-broken"),
        ("model-2-of-3.safetensors", "model-weights-broken"),
        ("tokenizer.json", "tokenizer-broken"),
        ("tokenizer_config.json", "tokenizer-broken"),
    ],
)
def test_a_folder_that_was_cloned_without_its_large_files(
    tmp_path: Path, name: str, code: str
) -> None:
    folder = model(tmp_path / "m", 3)
    (folder / name).write_text(POINTER)
    problem = refusal(folder)
    assert problem.code == code
    assert problem.message == (
        f"pvc://models/m: {name} is a pointer of git-lfs, not the file itself"
    )
    assert problem.fix.startswith("run `git lfs pull` in the folder")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    folder = model(tmp_path / "m", 3)
    (folder / INDEX).write_text(text)
    problem = refusal(folder)
    assert problem.code == "model-weights-broken"
    assert problem.message.startswith(f"pvc://models/m: {INDEX} is no index of weights: ")


@pytest.mark.parametrize("kind", ["awq", "gptq", "fp8", "mxfp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_weights_that_are_stored_quantised(tmp_path: Path, kind: str, nested: bool) -> None:
    stored: dict[str, Any] = {"quantization_config": {"quant_method": kind, "bits": 4}}
    problem = refusal(model(tmp_path / "m", **({"text_config": stored} if nested else stored)))
    assert problem.code == "model-quantised"
    assert problem.message == f"pvc://models/m is stored quantised ({kind})"
    assert problem.fix.startswith("use the repository with the weights before quantisation")
