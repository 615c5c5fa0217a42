"""The files of a model's folder that its weights are read from, and whether they are whole."""

from __future__ import annotations

import json
from pathlib import Path

from finetune_trainer.errors import StageError
from finetune_trainer.hub import CONVERT, unavailable

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that git-lfs has left in the place of the real one."""


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers reads: ``model.safetensors``, else those of its index.

    Other safetensors beside them, such as a second copy of the weights in another layout, are no
    part of the model.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        return []
    return [folder / name for name in _indexed(folder / INDEX) if (folder / name).is_file()]


def is_pointer(path: Path) -> bool:
    """Return whether a file is what git-lfs leaves where it did not fetch the content."""
    with path.open("rb") as stream:
        return stream.read(len(POINTER)) == POINTER


def check_weights(folder: Path, uri: str) -> None:
    """Raise ``StageError`` (16) when a folder has no weights, or not all of them."""
    index = folder / INDEX
    if index.is_file() and not (folder / SINGLE).is_file():
        _check_index(index, uri)
    found = weight_files(folder)
    if not found:
        raise _missing(folder, uri)
    for path in found:
        if is_pointer(path):
            raise not_fetched(path, uri, "model-weights-broken")
        if not _complete(path):
            raise unavailable(
                "model-weights-broken",
                f"{uri}: {path.name} is cut short or not safetensors",
                "copy the file again",
            )


def not_fetched(path: Path, uri: str, code: str, field: str = "spec.model.uri") -> StageError:
    """Return the error of a file that is a pointer of git-lfs."""
    return unavailable(
        code,
        f"{uri}: {path.name} is a pointer of git-lfs, not the file itself",
        "run `git lfs pull` in the folder, or copy the model again",
        field=field,
    )


def _missing(folder: Path, uri: str) -> StageError:
    """Return the error of a folder without weights, by what it has instead."""
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    if others:
        return unavailable(
            "model-weights-missing",
            f"{uri} has {others[0]}, and neither {SINGLE} nor {INDEX}",
            "use the repository in the layout of transformers, or give the file its name",
        )
    if pickles:
        return unavailable(
            "model-not-safetensors",
            f"{uri} has {pickles[0]} but no *.safetensors; pickled weights can run code and "
            "are never loaded",
            CONVERT,
        )
    return unavailable(
        "model-weights-missing",
        f"{uri} has no *.safetensors",
        "copy the weights beside config.json",
    )


def _check_index(index: Path, uri: str) -> None:
    """Raise ``StageError`` (16) when an index cannot be read, or names what is not there."""
    if is_pointer(index):
        raise not_fetched(index, uri, "model-weights-broken")
    try:
        named = _indexed(index)
    except ValueError as error:
        raise unavailable(
            "model-weights-broken",
            f"{uri}: {index.name} is no index of weights: {error}",
            "copy the file again",
        ) from error
    missing = [name for name in named if not (index.parent / name).is_file()]
    if missing:
        raise unavailable(
            "model-shard-missing",
            f"{uri}: {index.name} names {missing[0]}, which is not there"
            + (f" ({len(missing)} files are missing)" if len(missing) > 1 else ""),
            "copy the model again, all of its files",
        )


def _indexed(index: Path) -> list[str]:
    """Return the names of an index's files; raises ``ValueError`` when it is none."""
    loaded = json.loads(index.read_text(encoding="utf-8"))
    entries = loaded.get("weight_map") if isinstance(loaded, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise ValueError("no weight_map")
    if not all(isinstance(name, str) for name in entries.values()):
        raise ValueError("a weight_map without names of files")
    return sorted(set(entries.values()))


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
