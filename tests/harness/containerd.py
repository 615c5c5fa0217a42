"""containerd: its configuration, its images, and the end of everything it runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.commands import attempt, run
from harness.processes import wait_until
from harness.program import Program

_NAMESPACE = "k8s.io"
_PLUGINS = "/usr/lib/cni"
_LARGE = 1 << 30


class ImageArchive(Protocol):
    """An image in a file that ``ctr images import`` takes.

    Where it has an attribute ``layers``, those are images that must be there first: their layers
    are named in this archive and not in it.
    """

    @property
    def reference(self) -> str:
        """Its full name with a tag."""

    @property
    def archive(self) -> Path:
        """The file."""


@dataclass(frozen=True)
class Runtime:
    """One containerd: ``content`` holds images and may be kept, ``state`` is of this run alone."""

    content: Path
    state: Path
    program: Program

    @property
    def socket(self) -> Path:
        """Where it is spoken to."""
        return self.state / "containerd.sock"

    def start(self) -> None:
        """Start it and wait until it answers."""
        process = self.program.start()
        wait_until(lambda: attempt(*self._ctr("version")), "containerd answered", [process])

    def _ctr(self, *words: str | Path) -> list[str | Path]:
        return ["ctr", "--address", self.socket, "--namespace", _NAMESPACE, *words]

    def _names(self, *words: str) -> list[str]:
        return run(*self._ctr(*words)).split()

    def images(self) -> dict[str, str]:
        """Return digest by name of all images."""
        lines = run(*self._ctr("images", "ls")).splitlines()[1:]
        return {words[0]: words[2] for words in map(str.split, lines)}

    def _drop(self, wanted: Iterable[str]) -> list[str]:
        """Drop other tags of the same repositories; returns them.

        The node's own second names of images, their digests, would keep the content for ever.
        """
        old = _outdated(self.images(), wanted)
        if old:
            run(*self._ctr("images", "rm", *old))
        if nameless := _nameless(self.images()):
            run(*self._ctr("images", "rm", "--sync", *nameless))  # waits until the disk is free
        return old

    def bring(
        self, images: Sequence[ImageArchive], say: Callable[[str], None], *, keep: bool = False
    ) -> None:
        """Import what is not there yet; unless ``keep``, drop other tags of the same repositories.

        What was imported is remembered by the archive's size and time, so that an archive that was
        written again under the same name is imported again.
        """
        notes = self.content / "imported.json"
        known: dict[str, list[int]] = json.loads(notes.read_text()) if notes.is_file() else {}
        there = self.images()
        wanted = {one.reference: one for image in images for one in (*_lower(image), image)}
        for old in [] if keep else self._drop(wanted):
            known.pop(old, None)
        for reference, image in wanted.items():
            facts = image.archive.stat()
            mark = [facts.st_size, facts.st_mtime_ns]
            if reference in there and known.get(reference) == mark:
                continue
            began = time.monotonic()
            if facts.st_size > _LARGE:
                say(f"image {reference} of {facts.st_size >> 20} MiB is being imported ...")
            run(*self._ctr("images", "import", image.archive), timeout=1800)
            if reference not in self.images():
                raise RuntimeError(f"{image.archive} does not hold {reference}")
            known[reference] = mark
            notes.write_text(json.dumps(known))
            say(f"image {reference} imported in {time.monotonic() - began:.0f} s")

    def containers(self) -> list[str]:
        """Return the ids of all containers that it knows of."""
        return self._names("containers", "ls", "-q")

    def end_containers(self) -> None:
        """Kill every container, and forget all of them."""
        for task in self._names("tasks", "ls", "-q"):
            attempt(*self._ctr("tasks", "kill", "--signal", "SIGKILL", task))
        for task in self._names("tasks", "ls", "-q"):
            attempt(*self._ctr("tasks", "rm", "--force", task))
        for container in self.containers():
            attempt(*self._ctr("containers", "rm", container))
            attempt(*self._ctr("snapshots", "rm", container))

    def forget_run(self) -> None:
        """Remove what lies in memory on a real machine and is gone when it restarts."""
        for name in ("run", "runc"):
            shutil.rmtree(self.state / name, ignore_errors=True)
        self.socket.unlink(missing_ok=True)

    def kill_containers(self) -> None:
        """Kill every container as a loss of power would: containerd still knows of them."""
        for shim in shims(self.socket):
            for child in _children(shim):
                _kill(child)
            _kill(shim)


def runtime(content: Path, state: Path, plugins: Path, pause: str) -> Runtime:
    """Write the configuration; nothing is started."""
    for folder in (content, state):
        folder.mkdir(parents=True, exist_ok=True)
    path = state / "containerd.toml"
    path.write_text(_configuration(content, state, plugins, pause))
    environment = {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    command = [shutil.which("containerd") or "/usr/bin/containerd", "--config", path]
    program = Program("containerd", command, state.parent / "containerd.log", environment)
    return Runtime(content, state, program)


def _configuration(content: Path, state: Path, plugins: Path, pause: str) -> str:
    # Without CAP_SYS_RESOURCE, as in a container, no sandbox starts unless the scores of the
    # out-of-memory killer are restricted.
    return f'''version = 2
root = "{content}"
state = "{state}/run"
[grpc]
  address = "{state}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{state}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "{state}/runc"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{_PLUGINS}"
    conf_dir = "{plugins}"
'''


def _lower(image: ImageArchive) -> Sequence[ImageArchive]:
    return getattr(image, "layers", ())


def _outdated(there: Iterable[str], wanted: Iterable[str]) -> list[str]:
    wanted = set(wanted)
    repositories = {reference.rpartition(":")[0] for reference in wanted}
    return sorted(
        one for one in there if one not in wanted and one.rpartition(":")[0] in repositories
    )


def _nameless(images: Mapping[str, str]) -> list[str]:
    named = {digest for name, digest in images.items() if not name.startswith("sha256:")}
    return sorted(
        name
        for name, digest in images.items()
        if name.startswith("sha256:") and digest not in named
    )


def shims(socket: Path) -> list[int]:
    """Return the processes that hold containers of a containerd, whether it lives or not."""
    return [pid for pid, words in _commands().items() if _is_shim(words, socket)]


def _is_shim(words: Sequence[str], socket: Path) -> bool:
    return bool(words) and "containerd-shim" in words[0] and str(socket) in words


def _commands() -> Mapping[int, list[str]]:
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                found[int(folder.name)] = (folder / "cmdline").read_text().split("\0")
            except (OSError, UnicodeDecodeError):
                continue
    return found


def _children(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for one in threads for child in (one / "children").read_text().split()]
    except OSError:
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
