"""Commands in a built image as a restricted pod runs them, without a cluster.

Any user, no capability, no network, a read-only root file system, and a folder of the test's as
``/tmp``, where a pod has an emptyDir.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.cluster import alone, cache, running
from harness.commands import PATH, attempt, run
from harness.containerd import Runtime, runtime
from harness.images import Image
from harness.oci_archive import Layout
from harness.program import Program
from harness.scratch_images import PAUSE_IMAGE


@dataclass(frozen=True)
class Mounted:
    """An image whose files lie at ``root``, as containerd unpacked them; nobody can write there."""

    root: Path
    runs: Mapping[str, Any]
    """Environment, user, entry point and the rest of the image's configuration."""
    state: Path
    started: list[Container] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Return the variables that the image sets."""
        return dict(entry.split("=", 1) for entry in self.runs["Env"])

    def start(
        self,
        command: Sequence[str],
        tmp: Path,
        *,
        user: tuple[int, int],
        environment: Mapping[str, str] | None = None,
    ) -> Container:
        """Start a command as PID 1; without one, what the image runs."""
        words = list(command) or [*self.runs["Entrypoint"], *(self.runs.get("Cmd") or [])]
        tmp.mkdir(exist_ok=True)
        tmp.chmod(0o777)
        name = f"finetune-{secrets.token_hex(6)}"
        bundle = Path(tempfile.mkdtemp(dir=self.state))
        variables = {**self.environment(), **(environment or {})}
        spec = _spec(name, self.root, words, variables, self.runs["WorkingDir"], user, tmp)
        (bundle / "config.json").write_text(json.dumps(spec))
        popen = subprocess.Popen(
            ["runc", "--root", self.state / "runc", "run", "--bundle", bundle, name],
            stdin=subprocess.DEVNULL,
            stdout=(bundle / "out").open("wb"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": PATH},
        )
        container = Container(name, popen, bundle, self.state / "runc")
        self.started.append(container)
        return container

    def run(self, *command: str, tmp: Path, user: tuple[int, int], timeout: float = 120) -> Ended:
        """Run a command to its end."""
        return self.start(command, tmp, user=user).wait(timeout)


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote to both streams."""

    code: int
    text: str


@dataclass(frozen=True)
class Container:
    """A command that runs in an image."""

    name: str
    popen: subprocess.Popen[bytes]
    bundle: Path
    runc: Path

    def text(self) -> str:
        """Return what it has written so far."""
        return (self.bundle / "out").read_text(errors="replace")

    def signal(self, number: str) -> bool:
        """Send a signal to its PID 1; returns whether there was one."""
        return attempt("runc", "--root", self.runc, "kill", self.name, number)

    def wait(self, timeout: float) -> Ended:
        """Wait for the end; past ``timeout`` seconds it is killed and ``RuntimeError`` raised."""
        try:
            code = self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.end()
            raise RuntimeError(f"it ran for more than {timeout} s:\n{self.text()}") from None
        return Ended(code, self.text())

    def end(self) -> None:
        """Kill it, if it still runs."""
        if self.popen.poll() is None:
            self.signal("KILL")
            self.popen.wait(30)


@contextmanager
def mounted(images: Sequence[Image]) -> Iterator[list[Mounted]]:
    """Unpack images as a node does and mount them for the length of a block."""
    with tempfile.TemporaryDirectory(prefix="finetune-images-") as name:
        folder = Path(name)
        with _containerd(folder) as (node, keep):
            node.bring(images, print, keep=keep)
            ctr = ("ctr", "--address", node.socket, "--namespace", "k8s.io")
            made: list[Mounted] = []
            try:
                for number, image in enumerate(images):
                    root = folder / f"image{number}"
                    root.mkdir()
                    run(*ctr, "images", "mount", image.reference, root)
                    runs = Layout(image.archive).config()["config"]
                    made.append(Mounted(root, runs, folder))
                yield made
            finally:
                for one in made:
                    for container in one.started:
                        container.end()
                    run("umount", one.root)
                    for kind in ("snapshots", "leases"):  # in vain where its cluster has ended
                        attempt(*ctr, kind, "rm", str(one.root))


@contextmanager
def _containerd(folder: Path) -> Iterator[tuple[Runtime, bool]]:
    """Give the containerd of the cluster that runs here, or one on the images that clusters keep."""
    found = running()
    if found and Path(f"/proc/{found.pid}").exists():
        state = found.folder / "containerd"
        yield Runtime(cache() / "containerd", state, Program("", [], state / "log")), True
        return
    with alone():
        node = runtime(
            cache() / "containerd", folder / "containerd", folder / "network", PAUSE_IMAGE
        )
        try:
            node.start()
            yield node, False
        finally:
            node.program.stop()


def _spec(
    name: str,
    root: Path,
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: str,
    user: tuple[int, int],
    tmp: Path,
) -> dict[str, Any]:
    """Return what the OCI runtime is told; the rules of restricted Pod Security."""
    memory = ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": user[0], "gid": user[1]},
            "args": list(command),
            "env": [f"{key}={value}" for key, value in environment.items()],
            "cwd": folder,
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "pod",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": memory},
            {"destination": "/tmp", "type": "bind", "source": str(tmp), "options": ["rbind", "rw"]},
        ],
        "linux": {
            "cgroupsPath": f"/{name}",
            "namespaces": [
                {"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network", "cgroup")
            ],
        },
    }
