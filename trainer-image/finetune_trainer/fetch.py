"""The base model on disk: used in place from a claim, or fetched once from a hub.

Weights are safetensors only: a pickle can run code, so it is refused with the way to convert it.
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from finetune_api.document import digest_of
from finetune_api.exit_codes import ExitCode
from finetune_api.names import Layout
from finetune_api.problem import Problem
from finetune_api.resolved import StageConfig
from finetune_api.source import Source, parse_uri
from finetune_trainer.errors import StageError
from finetune_trainer.hashing import hashes_of, sync_tree, write_json
from finetune_trainer.hub import download, unavailable
from finetune_trainer.weights import check_weights, is_pointer, not_fetched, weight_files

TOKENIZER_FILES = re.compile(
    r"^(tokenizer.*\.json|tokenizer\.model|.*\.tiktoken|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(json|txt)|merges\.txt|spiece\.model|sentencepiece.*\.model"
    r"|chat_template\.(jinja|json))$"
)
TOKENIZER_ONE_OF = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class Materialised:
    """A base model that later stages can read offline."""

    path_ref: str
    """``pvc://claim/path``, or a path relative to the job's folder (``Choices.model_path``)."""
    digest: str
    tokenizer_digest: str
    commit: str | None = None
    """The commit that a hub's revision stood for."""


def locate(config: StageConfig, path_ref: str) -> Path:
    """Return the folder that ``Choices.model_path`` or a ``pvc://`` URI names."""
    if path_ref.startswith("pvc://"):
        source = parse_uri(path_ref)
        root = config.mounts.volumes.get(source.name)
        if root is None:
            raise StageError(
                ExitCode.MODEL_UNAVAILABLE,
                Problem(
                    code="claim-not-mounted",
                    message=f"claim {source.name} of {path_ref} is not mounted",
                    fix=_did_you_mean(source.name, list(config.mounts.volumes), "claims"),
                    field="spec.model.uri",
                ),
            )
        return Path(root, source.path) if source.path else Path(root)
    return Path(config.mounts.workspace, path_ref)


def materialise(config: StageConfig) -> Materialised:
    """Put the base model where every later stage finds it, check it, and digest it.

    Raises ``StageError`` with ``MODEL_UNAVAILABLE`` and what to do about it.
    """
    model = config.job.spec.model
    source = parse_uri(model.uri)
    if source.scheme == "pvc":
        folder, path_ref, commit = locate(config, model.uri), str(source), None
        check_folder(folder, model.uri, separate_tokenizer=model.tokenizer is not None)
    elif source.scheme == "hf":
        path_ref, commit = _from_hub(config, source)
        folder = locate(config, path_ref)
    else:
        raise StageError(
            ExitCode.MODEL_UNAVAILABLE,
            Problem(
                code="not-supported-yet",
                message=f"{model.uri}: {source.scheme}:// models are not supported yet",
                fix="use hf://owner/name or pvc://claim/path",
                field="spec.model.uri",
            ),
        )
    tokenizer = tokenizer_folder(config, folder)
    return Materialised(
        path_ref=path_ref,
        digest=digest_files(config, folder, model_files(folder)),
        tokenizer_digest=digest_files(config, tokenizer, tokenizer_files(tokenizer)),
        commit=commit,
    )


def tokenizer_folder(config: StageConfig, folder: Path) -> Path:
    """Return the folder of the tokenizer: the model's own unless ``model.tokenizer`` is set."""
    reference = config.job.spec.model.tokenizer
    if reference is None:
        return folder
    if not reference.uri.startswith("pvc://"):
        raise StageError(
            ExitCode.MODEL_UNAVAILABLE,
            Problem(
                code="not-supported-yet",
                message=f"{reference.uri}: a tokenizer of its own is read from a claim only",
                fix="copy the tokenizer to a claim and use pvc://claim/path",
                field="spec.model.tokenizer.uri",
            ),
        )
    found = locate(config, reference.uri)
    if not found.is_dir() or not any((found / name).is_file() for name in TOKENIZER_ONE_OF):
        raise unavailable(
            "tokenizer-missing",
            f"{reference.uri} has no tokenizer",
            "name a folder with tokenizer.json",
            field="spec.model.tokenizer.uri",
        )
    _check_tokenizer(found, reference.uri, "spec.model.tokenizer.uri")
    return found


def model_files(folder: Path) -> list[Path]:
    """Return the files that make the model: weights and configuration, not the tokenizer."""
    settings = (
        path
        for path in folder.glob("*.json")
        if path.is_file() and not TOKENIZER_FILES.match(path.name)
    )
    return sorted({*settings, *weight_files(folder)})


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files that make the tokenizer."""
    return sorted(p for p in folder.iterdir() if p.is_file() and TOKENIZER_FILES.match(p.name))


def digest_files(config: StageConfig, folder: Path, files: list[Path]) -> str:
    """Return the digest over sorted (path, size, sha256) of files.

    Hashes are remembered by size and modification time in the job's reports, so that a large
    model is read once.
    """
    cache = Layout(Path(config.mounts.workspace)).reports / "model-hashes.json"
    entries = hashes_of(files, cache)
    return digest_of(
        sorted(
            [path.relative_to(folder).as_posix(), path.stat().st_size, entries[path]]
            for path in files
        )
    )


def check_folder(folder: Path, uri: str, *, separate_tokenizer: bool = False) -> None:
    """Check that a folder holds a usable model; raises ``StageError`` when it does not."""
    if not folder.is_dir():
        raise unavailable("model-not-found", f"{uri} does not exist", _nearest(folder))
    if not (folder / "config.json").is_file():
        raise unavailable(
            "model-config-missing",
            f"{uri} has no config.json",
            "name the folder that holds config.json and the *.safetensors files"
            + _nested(folder, uri),
        )
    _check_config(folder, uri)
    check_weights(folder, uri)
    if separate_tokenizer:
        return
    if not any((folder / n).is_file() for n in TOKENIZER_ONE_OF):
        raise unavailable(
            "tokenizer-missing",
            f"{uri} has no tokenizer (tokenizer.json or tokenizer.model)",
            "copy the tokenizer files beside the weights, or set spec.model.tokenizer.uri",
        )
    _check_tokenizer(folder, uri, "spec.model.uri")


def _check_config(folder: Path, uri: str) -> None:
    """Check that a model's configuration is one, of weights that are stored as they are trained."""
    path = folder / "config.json"
    if is_pointer(path):
        raise not_fetched(path, uri, "model-config-invalid")
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(loaded, dict) or not loaded.get("model_type"):
            raise ValueError("no model_type")
    except ValueError as error:
        raise unavailable(
            "model-config-invalid",
            f"config.json of {uri} is not a model's configuration: {error}",
            "copy the model again",
        ) from error
    for part in (loaded, loaded.get("text_config")):
        if not isinstance(part, dict):
            continue
        stored = part.get("quantization_config") or part.get("compression_config")
        if stored:
            kind = (stored if isinstance(stored, dict) else {}).get("quant_method", "in its way")
            raise unavailable(
                "model-quantised",
                f"{uri} is stored quantised ({kind})",
                "use the repository with the weights before quantisation (bf16, fp16 or fp32)",
            )


def _check_tokenizer(folder: Path, uri: str, field: str) -> None:
    """Check that a tokenizer's files are there themselves."""
    for path in tokenizer_files(folder):
        if is_pointer(path):
            raise not_fetched(path, uri, "tokenizer-broken", field)


def _nested(folder: Path, uri: str) -> str:
    """Return a hint when the model lies one folder further down."""
    inner = sorted(p.parent.name for p in folder.glob("*/config.json"))
    return f"; did you mean {uri.rstrip('/')}/{inner[0]}?" if inner else ""


def _nearest(folder: Path) -> str:
    """Return a fix for a folder that does not exist: what is near it."""
    parent = folder.parent
    wanted = folder.name
    while not parent.is_dir() and parent != parent.parent:
        wanted, parent = parent.name, parent.parent
    names = sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
    return _did_you_mean(wanted, names, "folders there")


def _did_you_mean(wanted: str, names: list[str], what: str) -> str:
    """Return a fix: the nearest name, and the first few of all."""
    if not names:
        return "copy the model to the claim first"
    near = difflib.get_close_matches(wanted, names, n=1)
    listed = " ".join(names[:10]) + (" ..." if len(names) > 10 else "")
    return (f"did you mean {near[0]}? " if near else "") + f"{what}: {listed}"


# --- from a hub ---------------------------------------------------------------------------------


def _from_hub(config: StageConfig, source: Source) -> tuple[str, str]:
    """Return (path relative to the job's folder, commit) of a model of a hub; fetch it if needed.

    What a revision stood for is resolved once a job: a record in the workspace is used again, so
    that a second preparation trains on the same commit and needs no network.
    """
    model = config.job.spec.model
    layout = Layout(Path(config.mounts.workspace))
    record = layout.reports / "model.json"
    key = {"uri": model.uri, "revision": model.revision, "endpoint": model.endpoint}
    if record.is_file():
        known = json.loads(record.read_text(encoding="utf-8"))
        folder = layout.root / known["path"]
        if known.get("key") == key and _whole(config, folder, known["digest"]):
            return str(known["path"]), str(known["commit"])
    commit, staging = download(config, source, layout)
    check_folder(staging, model.uri, separate_tokenizer=model.tokenizer is not None)
    digest = _digest(config, staging)
    target = layout.model / digest.removeprefix("sha256:")[:16]
    sync_tree(staging)
    if target.exists():  # of a preparation that did not come to its record, or damaged since
        shutil.rmtree(target)
    staging.rename(target)
    path = target.relative_to(layout.root).as_posix()
    write_json(record, {"key": key, "path": path, "commit": commit, "digest": digest})
    return path, commit


def _whole(config: StageConfig, folder: Path, digest: str) -> bool:
    """Return whether a fetched model is still what was fetched."""
    try:
        return (folder / "config.json").is_file() and _digest(config, folder) == digest
    except (OSError, ValueError):
        return False


def _digest(config: StageConfig, folder: Path) -> str:
    """Return the digest of a fetched model, its tokenizer with it."""
    return digest_files(config, folder, model_files(folder) + tokenizer_files(folder))
