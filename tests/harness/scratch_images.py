"""Images of one static program and nothing else, made without any image tool."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.binaries import PAUSE, binary

BUSYBOX = Path("/bin/busybox")
PAUSE_IMAGE = "finetune.local/pause:1"
BUSYBOX_IMAGE = "finetune.local/busybox:1"


@dataclass(frozen=True)
class ScratchImage:
    """An image in an archive."""

    reference: str
    archive: Path


def scratch_images(folder: Path) -> list[ScratchImage]:
    """Return the image of every pod's sandbox and one with a shell, made once in a folder."""
    busybox = BUSYBOX.read_bytes()
    return [
        _made(folder, PAUSE_IMAGE, ["/pause"], {"pause": binary(PAUSE).read_bytes()}),
        _made(folder, BUSYBOX_IMAGE, ["/bin/sh"], {"bin/busybox": busybox}, _applets()),
    ]


def _made(
    folder: Path,
    reference: str,
    command: list[str],
    programs: Mapping[str, bytes],
    applets: Sequence[str] = (),
) -> ScratchImage:
    key = hashlib.sha256(json.dumps([reference, command, *applets]).encode())
    for name, content in programs.items():
        key.update(name.encode() + hashlib.sha256(content).digest())
    archive = folder / f"{key.hexdigest()[:16]}.tar"
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = archive.with_suffix(".part")
        _write(part, reference, command, _layer(programs, applets))
        part.replace(archive)
    return ScratchImage(reference, archive)


def _applets() -> list[str]:
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split() if name != "busybox"]


def _layer(programs: Mapping[str, bytes], applets: Sequence[str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as layer:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            layer.addfile(folder)
        for name, content in programs.items():
            _file(layer, name, content, 0o755)
        _file(layer, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n", 0o644)
        for name in applets:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            layer.addfile(link)
    return out.getvalue()


def _write(archive: Path, reference: str, command: list[str], layer: bytes) -> None:
    configuration = json.dumps(
        {
            "architecture": _architecture(),
            "os": "linux",
            "config": {"Cmd": command, "Env": ["PATH=/bin"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"],
            },
        }
    ).encode()
    name = f"{hashlib.sha256(configuration).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [reference], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as out:
        _file(out, "layer.tar", layer, 0o644)
        _file(out, name, configuration, 0o644)
        _file(out, "manifest.json", json.dumps(manifest).encode(), 0o644)


def _file(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
