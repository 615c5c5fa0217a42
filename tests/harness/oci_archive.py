"""OCI images as files: read from a layout, put on top of each other, written as archives."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_NAME = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Layout:
    """One image in an OCI layout of uncompressed layers, a folder or an archive."""

    path: Path

    def index(self) -> Any:
        """Return what the layout holds."""
        return json.loads(self._read("index.json"))

    def manifest(self) -> Any:
        """Return the manifest of its only image; ``ValueError`` where there are others."""
        (one,) = self.index()["manifests"]
        return self._json(one)

    def config(self) -> Any:
        """Return the configuration: what runs, history, and the layers by content."""
        return self._json(self.manifest()["config"])

    def size(self) -> int:
        """Return the bytes of all layers, as they are on a node's disk."""
        return sum(layer["size"] for layer in self.manifest()["layers"])

    def members(self, layer: Mapping[str, Any]) -> Iterator[tarfile.TarInfo]:
        """Go over the files of a layer."""
        if self.path.is_dir():
            with tarfile.open(self.path / _blob(layer["digest"])) as files:
                yield from files
            return
        with tarfile.open(self.path) as outer:
            content = outer.extractfile(_blob(layer["digest"]))
            with tarfile.open(fileobj=content) as files:
                yield from files

    def _json(self, descriptor: Mapping[str, Any]) -> Any:
        return json.loads(self._read(_blob(descriptor["digest"])))

    def _read(self, name: str) -> bytes:
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        with tarfile.open(self.path) as archive:
            content = archive.extractfile(name)
            assert content is not None, name
            return content.read()


def write_on_top(
    lower: Layout, upper: Layout, common: int, reference: str, archive: Path, *, whole: bool
) -> None:
    """Write an image: the layers of ``lower``, then those of ``upper`` but the first ``common``.

    What runs is as ``upper`` says. Unless ``whole``, the layers of ``lower`` are named and not
    in the archive: whoever imports it has to have them.
    """
    low, top = lower.manifest(), upper.manifest()
    low_config, config = lower.config(), upper.config()
    own = top["layers"][common:]
    differences = config["rootfs"]["diff_ids"]
    if differences[:common] != low_config["rootfs"]["diff_ids"][:common]:
        raise ValueError(f"{upper.path} does not begin with the first layers of {lower.path}")
    config["rootfs"]["diff_ids"] = [*low_config["rootfs"]["diff_ids"], *differences[common:]]
    config["history"] = [*low_config["history"], *_after(config["history"], common)]
    text = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": _CONFIG, "digest": _digest(text), "size": len(text)},
        "layers": [*low["layers"], *own],
    }
    part = archive.with_name(f".{archive.name}.part")
    with tarfile.open(part, "w") as out:
        _add_head(out, manifest, reference)
        _add(out, _blob(_digest(text)), text)
        for layout, layers in ((lower, low["layers"] if whole else []), (upper, own)):
            for name in dict.fromkeys(_blob(layer["digest"]) for layer in layers):
                _copy(out, layout.path, name)
    part.replace(archive)


def write_renamed(layout: Layout, reference: str, archive: Path) -> None:
    """Write the same image under another name, whatever of its layers the archive holds."""
    index = layout.index()
    index["manifests"][0]["annotations"][_NAME] = reference
    part = archive.with_name(f".{archive.name}.part")
    with tarfile.open(layout.path) as content, tarfile.open(part, "w") as out:
        for member in content:
            if member.name == "index.json":
                _add(out, member.name, json.dumps(index).encode())
            else:
                out.addfile(member, content.extractfile(member))
    part.replace(archive)


def _after(history: list[Any], layers: int) -> list[Any]:
    """Return the entries after those that made the first ``layers`` layers."""
    for position, entry in enumerate(history):
        if layers == 0:
            return history[position:]
        layers -= not entry.get("empty_layer")
    return []


def _add_head(out: tarfile.TarFile, manifest: Mapping[str, Any], reference: str) -> None:
    text = json.dumps(manifest).encode()
    descriptor = {
        "mediaType": _MANIFEST,
        "digest": _digest(text),
        "size": len(text),
        "annotations": {_NAME: reference},
    }
    index = {"schemaVersion": 2, "manifests": [descriptor]}
    _add(out, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    _add(out, "index.json", json.dumps(index).encode())
    _add(out, _blob(_digest(text)), text)


def _add(out: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    out.addfile(member, io.BytesIO(content))


def _copy(out: tarfile.TarFile, path: Path, name: str) -> None:
    if path.is_dir():
        out.add(path / name, name)
        return
    with tarfile.open(path) as archive:
        out.addfile(archive.getmember(name), archive.extractfile(name))


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")
