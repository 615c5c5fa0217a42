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
from finetune_trainer.hub import CONVERT, download, unavailable

TOKENIZER_FILES = re.compile(
    r"^(tokenizer.*\.json|tokenizer\.model|.*\.tiktoken|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(json|txt)|merges\.txt|spiece\.model|sentencepiece.*\.model"
    r"|chat_template\.(jinja|json))$"
)
TOKENIZER_ONE_OF = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


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
    return found


def model_files(folder: Path) -> list[Path]:
    """Return the files that make the model: weights and configuration, not the tokenizer."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and (path.suffix == ".safetensors" or path.name.endswith(".json"))
        and not TOKENIZER_FILES.match(path.name)
    )


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
    try:
        loaded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(loaded, dict) or not loaded.get("model_type"):
            raise ValueError("no model_type")
    except ValueError as error:
        raise unavailable(
            "model-config-invalid",
            f"config.json of {uri} is not a model's configuration: {error}",
            "copy the model again",
        ) from error
    _check_weights(folder, uri)
    if not separate_tokenizer and not any((folder / n).is_file() for n in TOKENIZER_ONE_OF):
        raise unavailable(
            "tokenizer-missing",
            f"{uri} has no tokenizer (tokenizer.json or tokenizer.model)",
            "copy the tokenizer files beside the weights, or set spec.model.tokenizer.uri",
        )


def _check_weights(folder: Path, uri: str) -> None:
    """Check that the weights are complete safetensors."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        if pickles:
            raise unavailable(
                "model-not-safetensors",
                f"{uri} has {pickles[0]} but no *.safetensors; pickled weights can run code and "
                "are never loaded",
                CONVERT,
            )
        raise unavailable(
            "model-weights-missing",
            f"{uri} has no *.safetensors",
            "copy the weights beside config.json",
        )
    for index in folder.glob("*.safetensors.index.json"):
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise unavailable(
                "model-shard-missing",
                f"{uri}: {index.name} names {missing[0]}, which is not there"
                + (f" ({len(missing)} files are missing)" if len(missing) > 1 else ""),
                "copy the model again, all of its files",
            )
    for path in weights:
        if not _complete(path):
            raise unavailable(
                "model-weights-broken",
                f"{uri}: {path.name} is cut short or not safetensors",
                "copy the file again",
            )


def _complete(path: Path) -> bool:
    """Return whether a safetensors file is as long as its own header says."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= size - 8:
            return False
        try:
            header = json.loads(stream.read(length))
            end = max(
                (v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
    return size == 8 + length + int(end)


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
        if known.get("key") == key and (layout.root / known["path"] / "config.json").is_file():
            return str(known["path"]), str(known["commit"])
    commit, staging = download(config, source, layout)
    check_folder(staging, model.uri, separate_tokenizer=model.tokenizer is not None)
    files = model_files(staging) + tokenizer_files(staging)
    digest = digest_files(config, staging, files)
    target = layout.model / digest.removeprefix("sha256:")[:16]
    sync_tree(staging)
    if target.exists():
        shutil.rmtree(staging)
    else:
        staging.rename(target)
    path = target.relative_to(layout.root).as_posix()
    write_json(record, {"key": key, "path": path, "commit": commit, "digest": digest})
    return path, commit
