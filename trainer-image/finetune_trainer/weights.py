"""The files of a model's folder that its weights are read from, and whether they are whole."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from finetune_trainer.errors import StageError
from finetune_trainer.hub import CONVERT, unavailable

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_NAMED = 3
"""Weights that a message names; of more it says how many."""
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


def header(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a safetensors file says of its weights, by name: ``shape``, ``dtype`` and place.

    Raises ``ValueError`` when it is not as long as that says, or says nothing.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError("no header")
        entries = json.loads(stream.read(length))
    try:
        found = {name: dict(entry) for name, entry in entries.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in found.values()), default=0)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError("no header of safetensors") from error
    if size != 8 + length + end:
        raise ValueError("cut short")
    return found


def check_loaded(uri: str, told: Mapping[str, Any]) -> None:
    """Raise ``StageError`` (16) by what the library says of the names of weights that it loaded.

    It gives a weight that it does not find random values. What it has no place for does no harm.
    """
    for name, found, wanted in sorted(told["mismatched_keys"]):
        raise _not_whole(
            uri, f"its {name} is {list(found)}, and config.json makes it {list(wanted)}"
        )
    if told["missing_keys"]:
        raise _not_whole(uri, f"it has no {listed(told['missing_keys'])}")


def _not_whole(uri: str, what: str) -> StageError:
    return unavailable(
        "model-weights-incomplete",
        f"{uri} is not the model of its config.json: {what}",
        "copy the model again, all of its files: its weights and its config.json belong together",
    )


def listed(names: Collection[str]) -> str:
    """Return the first names, and how many more there are."""
    first = sorted(names)[:_NAMED]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _complete(path: Path) -> bool:
    """Return whether a safetensors file is as long as its own header says."""
    try:
        header(path)
    except ValueError:
        return False
    return True
