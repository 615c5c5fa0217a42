"""The base model on disk: from a claim in place, from a hub once, and never a pickle."""

from __future__ import annotations

import errno
import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_trainer import fetch
from finetune_trainer import hub as from_hub
from finetune_trainer.errors import StageError, ending_of
from harness.hub import Hub, running_hub
from harness.stage_config import make_config
from harness.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def hub() -> Hub:
    with running_hub() as running:
        yield running


def put(root: Path, tiny: Path, name: str = "tiny", *, without: tuple[str, ...] = ()) -> Path:
    folder = root / "volumes" / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    for path in tiny.iterdir():
        if path.name not in without:
            os.link(path, folder / path.name)
    return folder


def refusal(
    root: Path, model: dict[str, object], code: ExitCode = ExitCode.MODEL_UNAVAILABLE
) -> Problem:
    with pytest.raises(StageError) as caught:
        fetch.materialise(make_config(root, "prepare", {"model": model}))
    assert caught.value.exit_code is code
    return caught.value.problems[0]


def test_a_model_of_a_claim_is_used_in_place(tmp_path: Path, tiny: Path) -> None:
    folder = put(tmp_path, tiny)
    config = make_config(tmp_path, "prepare")
    found = fetch.materialise(config)
    assert found.path_ref == "pvc://models/tiny"
    assert fetch.locate(config, found.path_ref) == folder
    assert not (tmp_path / "workspace" / "model").exists()


def test_the_digest_is_of_paths_sizes_and_contents(tmp_path: Path, tiny: Path) -> None:
    first = fetch.materialise(make_config(put(tmp_path / "a", tiny).parents[2], "prepare"))
    second = fetch.materialise(make_config(put(tmp_path / "b", tiny).parents[2], "prepare"))
    assert first == second
    folder = put(tmp_path / "c", tiny, without=("model.safetensors",))
    data = bytearray((tiny / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    third = fetch.materialise(make_config(tmp_path / "c", "prepare"))
    assert third.digest != first.digest
    assert third.tokenizer_digest == first.tokenizer_digest


def test_an_unchanged_model_is_hashed_once(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_trainer import hashing

    folder = put(tmp_path, tiny)
    read: list[str] = []
    real = hashing.sha256_of
    monkeypatch.setattr(hashing, "sha256_of", lambda p: (read.append(p.name), real(p))[1])
    config = make_config(tmp_path, "prepare")
    first = fetch.materialise(config)
    assert "model.safetensors" in read
    read.clear()
    assert fetch.materialise(config) == first
    assert read == []
    (folder / "config.json").unlink()
    (folder / "config.json").write_text((tiny / "config.json").read_text() + "\n")
    assert fetch.materialise(config).digest != first.digest
    assert read == ["config.json"]


def test_folder_without_config(tmp_path: Path, tiny: Path) -> None:
    put(tmp_path, tiny, without=("config.json",))
    problem = refusal(tmp_path, {})
    assert problem.code == "model-config-missing"
    assert problem.message == "pvc://models/tiny has no config.json"
    assert problem.fix == "name the folder that holds config.json and the *.safetensors files"
    assert problem.field == "spec.model.uri"


def test_model_one_folder_further_down(tmp_path: Path, tiny: Path) -> None:
    put(tmp_path, tiny, "outer/inner")
    problem = refusal(tmp_path, {"uri": "pvc://models/outer"})
    assert problem.fix.endswith("; did you mean pvc://models/outer/inner?")


def test_missing_folder_names_the_nearest(tmp_path: Path, tiny: Path) -> None:
    put(tmp_path, tiny, "qwen-7b")
    problem = refusal(tmp_path, {"uri": "pvc://models/qwen7b"})
    assert problem.code == "model-not-found"
    assert problem.message == "pvc://models/qwen7b does not exist"
    assert problem.fix == "did you mean qwen-7b? folders there: qwen-7b"


def test_claim_that_is_not_mounted(tmp_path: Path) -> None:
    problem = refusal(tmp_path, {"uri": "pvc://model/tiny"})
    assert problem.code == "claim-not-mounted"
    assert problem.fix == "did you mean models? claims: datasets models"


def test_pickles_are_refused_with_the_way_to_convert(tmp_path: Path, tiny: Path) -> None:
    folder = put(tmp_path, tiny, without=("model.safetensors",))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    problem = refusal(tmp_path, {})
    assert problem.code == "model-not-safetensors"
    assert "pytorch_model.bin" in problem.message
    assert "save_pretrained" in problem.fix


def _shorten(path: Path) -> None:
    data = path.read_bytes()
    _replace(path, data[:-1])


def _replace(path: Path, data: str | bytes) -> None:
    path.unlink()
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def _index(folder: Path) -> None:
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / names["b"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "model-weights-missing"),
        (lambda f: _shorten(f / "model.safetensors"), "model-weights-broken"),
        (_index, "model-shard-missing"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "tokenizer-missing"),
        (lambda f: _replace(f / "config.json", "{"), "model-config-invalid"),
        (lambda f: _replace(f / "config.json", "{}"), "model-config-invalid"),
    ],
)
def test_incomplete_models(tmp_path: Path, tiny: Path, damage: object, code: str) -> None:
    damage(put(tmp_path, tiny))
    assert refusal(tmp_path, {}).code == code


def test_a_hub_model_is_fetched_once_at_a_commit(tmp_path: Path, tiny: Path, hub: Hub) -> None:
    (tiny / "README.md").write_text("card")
    commit = hub.add("acme/tiny", tiny)
    config = make_config(
        tmp_path, "prepare", {"model": {"uri": "hf://acme/tiny", "endpoint": hub.endpoint}}
    )
    found = fetch.materialise(config)
    assert found.commit == commit
    folder = fetch.locate(config, found.path_ref)
    assert folder.parent == tmp_path / "workspace" / "model"
    assert (folder / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in tiny.iterdir())
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    # The branch moves on; the job stays with what it resolved, without asking again.
    hub.add("acme/tiny", tiny.parent)
    asked = len(hub.requests)
    assert fetch.materialise(config) == found
    assert len(hub.requests) == asked


def test_a_fetched_model_that_was_damaged_is_fetched_again(
    tmp_path: Path, tiny: Path, hub: Hub
) -> None:
    hub.add("acme/tiny", tiny)
    config = make_config(
        tmp_path, "prepare", {"model": {"uri": "hf://acme/tiny", "endpoint": hub.endpoint}}
    )
    found = fetch.materialise(config)
    path = fetch.locate(config, found.path_ref) / "model.safetensors"
    path.unlink()
    assert fetch.materialise(config) == found
    assert path.read_bytes() == (tiny / "model.safetensors").read_bytes()


def test_terms_come_with_a_model_and_a_second_copy_of_its_weights_does_not(
    tmp_path: Path, tiny: Path, hub: Hub
) -> None:
    folder = put(tmp_path / "offered", tiny)
    (folder / "LICENSE").write_text("be good")
    (folder / "USE_POLICY.md").write_text("be very good")
    os.link(tiny / "model.safetensors", folder / "consolidated.safetensors")
    hub.add("acme/tiny", folder)
    config = make_config(
        tmp_path, "prepare", {"model": {"uri": "hf://acme/tiny", "endpoint": hub.endpoint}}
    )
    fetched = fetch.locate(config, fetch.materialise(config).path_ref)
    assert (fetched / "LICENSE").read_text() == "be good"
    assert (fetched / "USE_POLICY.md").read_text() == "be very good"
    assert "consolidated.safetensors" not in hub.downloads()


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path, tiny: Path) -> None:
    from finetune_trainer.model import load_tokenizer

    folder = put(tmp_path, tiny)
    _replace(folder / "tokenizer.json", '{"model": ')
    with pytest.raises(StageError) as caught:
        load_tokenizer(make_config(tmp_path, "prepare"))
    assert caught.value.exit_code is ExitCode.MODEL_UNAVAILABLE
    problem = caught.value.problems[0]
    assert problem.code == "tokenizer-broken"
    assert problem.message.startswith("the tokenizer of pvc://models/tiny cannot be loaded: ")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_what_the_storage_does_not_give_is_tried_again(
    tmp_path: Path, tiny: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of that file the system's own answer is EIO, to Python and to Rust."""
    from finetune_trainer import model

    folder = put(tmp_path, tiny)
    (folder / name).unlink()
    (folder / name).symlink_to("/proc/self/mem")
    monkeypatch.setattr(model, "model_folder", lambda _: folder)
    load = model.load_model_config if name == "config.json" else model.load_tokenizer
    with pytest.raises(OSError, match="Input/output error") as caught:
        load(make_config(tmp_path, "prepare"))
    assert caught.value.errno == errno.EIO
    assert ending_of(caught.value).exit_code is ExitCode.UNEXPECTED


def anew(*chain: Exception) -> Exception:
    """The last of several errors, each raised while the one before it was handled."""
    for before, after in pairwise(chain):
        after.__context__ = before
    return chain[-1]


@pytest.mark.parametrize(
    ("raised", "exit_code", "code"),
    [
        (OSError(errno.ESTALE, "Stale file handle", "/w/tokenizer.json"), 1, "unexpected"),
        (OSError(errno.ENOSPC, "No space left on device"), 14, "storage-full"),
        (Exception("Stale file handle (os error 116)"), 1, "unexpected"),
        (
            anew(OSError(errno.EIO, "Input/output error"), OSError("Unable to load vocabulary")),
            1,
            "unexpected",
        ),
        (OSError("Unable to load vocabulary from file."), 16, "tokenizer-broken"),
        (OSError(errno.ENOENT, "No such file or directory"), 16, "tokenizer-broken"),
        (Exception("No such file or directory (os error 2)"), 16, "tokenizer-broken"),
        (ImportError("requires the SentencePiece library"), 16, "tokenizer-library-missing"),
        (ValueError(""), 16, "tokenizer-broken"),
    ],
    ids=lambda value: str(value) or "silent",
)
def test_a_tokenizer_is_refused_for_its_files_alone(
    tmp_path: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    exit_code: int,
    code: str,
) -> None:
    from transformers import AutoTokenizer

    from finetune_trainer.model import load_tokenizer

    def fails(*_: object, **__: object) -> None:
        raise raised

    put(tmp_path, tiny)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fails)
    with pytest.raises((OSError, StageError)) as caught:
        load_tokenizer(make_config(tmp_path, "prepare"))
    ending = ending_of(caught.value)
    assert (ending.exit_code, ending.problems[0].code) == (exit_code, code)


def test_a_revision_of_a_hub(tmp_path: Path, tiny: Path, hub: Hub) -> None:
    wanted = hub.add("acme/tiny", tiny, branch="v1")
    model = {"uri": "hf://acme/tiny", "endpoint": hub.endpoint}
    config = make_config(tmp_path / "a", "prepare", {"model": {**model, "revision": "v1"}})
    assert fetch.materialise(config).commit == wanted
    problem = refusal(tmp_path / "b", {**model, "revision": "v2"})
    assert (problem.code, problem.field) == ("model-revision-not-found", "spec.model.revision")


def test_pickles_of_a_hub_are_not_even_downloaded(tmp_path: Path, tiny: Path, hub: Hub) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text((tiny / "config.json").read_text())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    hub.add("acme/pickled", folder)
    problem = refusal(tmp_path, {"uri": "hf://acme/pickled", "endpoint": hub.endpoint})
    assert problem.code == "model-not-safetensors"
    assert hub.downloads() == []


def test_gated_and_private_models(
    tmp_path: Path, tiny: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub.add("acme/gated", tiny, gated=True)
    hub.add("acme/private", tiny, private=True)
    gated = {"uri": "hf://acme/gated", "endpoint": hub.endpoint}
    problem = refusal(tmp_path / "a", gated)
    assert problem.code == "model-gated"
    assert "spec.model.tokenSecretRef" in problem.fix
    private = {"uri": "hf://acme/private", "endpoint": hub.endpoint}
    assert refusal(tmp_path / "b", private).code == "model-not-found"
    # The mounted secret opens the one, the local variable the other.
    secrets = tmp_path / "secrets"
    (secrets / "hub").mkdir(parents=True)
    (secrets / "hub" / "key").write_text("hf_letmein\n")
    monkeypatch.setattr(from_hub, "SECRETS", secrets)
    named = {**gated, "tokenSecretRef": {"name": "hub", "key": "key"}}
    assert fetch.materialise(make_config(tmp_path / "c", "prepare", {"model": named})).commit
    monkeypatch.setenv("HF_TOKEN", "hf_letmein")
    assert fetch.materialise(make_config(tmp_path / "d", "prepare", {"model": private})).commit


def test_hub_that_cannot_be_reached(
    tmp_path: Path, tiny: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    model = {"uri": "hf://acme/tiny", "endpoint": hub.endpoint}
    assert refusal(tmp_path, model).code == "model-not-found"
    hub.add("acme/tiny", tiny)
    hub.broken = True
    problem = refusal(tmp_path, model, ExitCode.COMMUNICATION_LOST)
    assert (problem.code, "500" in problem.message) == ("hub-unreachable", True)
    nobody = {**model, "endpoint": "http://127.0.0.1:9"}
    assert refusal(tmp_path, nobody, ExitCode.COMMUNICATION_LOST).code == "hub-unreachable"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    problem = refusal(tmp_path, model)
    assert problem.code == "hub-offline"
    assert "pvc://claim/path" in problem.fix


def test_a_cut_download_leaves_no_model_and_is_taken_up_again(
    tmp_path: Path, tiny: Path, hub: Hub
) -> None:
    hub.add("acme/tiny", tiny)
    model = {"uri": "hf://acme/tiny", "endpoint": hub.endpoint}
    hub.cut_downloads = True
    problem = refusal(tmp_path, model, ExitCode.COMMUNICATION_LOST)
    assert problem.code == "hub-unreachable"
    folders = (tmp_path / "workspace" / "model").iterdir()
    assert all(p.name.startswith(".download-") for p in folders)
    assert not (tmp_path / "workspace" / "reports" / "model.json").exists()
    hub.cut_downloads = False
    found = fetch.materialise(make_config(tmp_path, "prepare", {"model": model}))
    folder = tmp_path / "workspace" / found.path_ref
    assert (folder / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
