"""Images made of one static busybox and nothing else, without any image tool."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
PAUSE = "finetune.local/pause:1"
BUSYBOX_IMAGE = "finetune.local/busybox:1"


@dataclass(frozen=True)
class ScratchImage:
    """An image in an archive."""

    reference: str
    archive: Path


def busybox_images(folder: Path) -> dict[str, ScratchImage]:
    """Return the image of every pod's sandbox and one with a shell, made once in a folder."""
    pause = ["/bin/busybox", "sleep", "infinity"]
    return {
        PAUSE: _made(folder, PAUSE, pause, with_applets=False),
        BUSYBOX_IMAGE: _made(folder, BUSYBOX_IMAGE, ["/bin/sh"], with_applets=True),
    }


def _made(folder: Path, reference: str, command: list[str], *, with_applets: bool) -> ScratchImage:
    program = BUSYBOX.read_bytes()
    key = hashlib.sha256(program + json.dumps([reference, command, with_applets]).encode())
    archive = folder / f"{key.hexdigest()[:16]}.tar"
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = archive.with_suffix(".part")
        _write(part, reference, command, _layer(program, _applets() if with_applets else []))
        part.replace(archive)
    return ScratchImage(reference, archive)


def _applets() -> list[str]:
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split() if name != "busybox"]


def _layer(program: bytes, applets: list[str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as layer:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            layer.addfile(folder)
        _file(layer, "bin/busybox", program, 0o755)
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
    import platform

    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
