"""What a cluster needs of this machine, what it changes there, and how that is undone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from harness import network
from harness.commands import PATH, attempt
from harness.containerd import shims

_PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "openssl": "openssl",
    "conntrack": "conntrack",
    "mount": "mount",
}
_FILES = {
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "/bin/busybox": "busybox-static",
}
_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/bridge/bridge-nf-call-iptables",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/conf/all/forwarding",
    "net/ipv4/conf/default/forwarding",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""Settings that the kubelet, kube-proxy and the network plugins write."""
_FIXED = (
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/run/containerd",
    "/var/log/containers",
    "/var/log/pods",
    "/run/netns",
    "/opt/containerd",
    "/etc/cni",
)
"""Folders that the node's programs make whatever they are told."""
RECORD = "machine.json"
"""In a cluster's folder: how the machine was before."""


_BUILDERS = {"buildah": "buildah", "debootstrap": "debootstrap"}
"""What building the images needs beside."""


def missing_packages(*, images: bool = False) -> list[str]:
    """Return the Debian packages that a node (and the ``images``) needs and that are not there."""
    programs = {**_PACKAGES, **(_BUILDERS if images else {})}
    commands = (package for name, package in programs.items() if not shutil.which(name, path=PATH))
    files = (package for path, package in _FILES.items() if not Path(path).exists())
    return sorted({*commands, *files})


def install_command(packages: Iterable[str]) -> list[str]:
    """Return the command that installs packages."""
    return ["apt-get", "install", "--yes", "--no-install-recommends", *packages]


def check() -> None:
    """Raise RuntimeError that says what to do where no node can run on this machine."""
    if os.geteuid() != 0:
        raise RuntimeError("a node needs root: run this as root on a Debian machine")
    if missing := missing_packages():
        raise RuntimeError(
            f"packages of a node are not installed; run: {' '.join(install_command(missing))}"
        )
    if network.exists():
        raise RuntimeError(
            f"interface {network.BRIDGE} is there, but not from a cluster of this user's: "
            f"another user's runs, or remove it with: ip link delete {network.BRIDGE}"
        )
    if network.foreign_node():
        raise RuntimeError(
            "another Kubernetes node's rules are in iptables: two nodes cannot share a machine"
        )
    network.load_modules()


def record(folder: Path) -> None:
    """Write down how the machine is now, so that whoever ends the cluster can restore it."""
    found = {
        "sysctls": {name: value for name in _SYSCTLS if (value := _read(name)) is not None},
        "there": [path for path in _FIXED if Path(path).exists()],
        "namespaces": sorted(network.pod_namespaces()),
        "tables": {command: sorted(network.tables(command)) for command in network.FAMILIES},
    }
    (folder / RECORD).write_text(json.dumps(found))


def restore(folder: Path, socket: Path) -> None:
    """Undo all that a cluster did to this machine, however it ended; its programs are gone.

    May be called again after it was cut short.
    """
    found = json.loads((folder / RECORD).read_text())
    _end_processes(socket)
    network.remove_namespaces(new_namespaces(folder))
    unmount_under(folder)
    if held := [point for point in mount_points() if point.startswith(f"{folder}/")]:
        # Whatever is mounted there may be somebody's data: nothing below is removed.
        raise RuntimeError(f"cannot unmount {held}: the cluster in {folder} is not cleared away")
    network.remove(found["tables"])
    _remove_cgroups()
    for name, value in found["sysctls"].items():
        if _read(name) != value:
            (Path("/proc/sys") / name).write_text(value)
    for path in map(Path, _FIXED):
        if str(path) not in found["there"]:
            unmount_under(path)
            shutil.rmtree(path, ignore_errors=True)
    _remove_dead_links(Path("/var/log/containers"))
    shutil.rmtree(folder)


def new_namespaces(folder: Path) -> set[str]:
    """Return the pods' network namespaces that were not there before the cluster."""
    found = json.loads((folder / RECORD).read_text())
    return network.pod_namespaces() - set(found["namespaces"])


def unmount_under(folder: Path) -> None:
    """Unmount everything that is mounted at or under a folder."""
    for point in reversed(mount_points()):
        if point == str(folder) or point.startswith(f"{folder}/"):
            attempt("umount", "-l", point)


def mount_points() -> list[str]:
    """Return where file systems are mounted, the oldest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def pod_cgroups() -> list[Path]:
    """Return the control groups of pods, in each hierarchy that has them."""
    root = Path("/sys/fs/cgroup")
    return [path for path in (root / "kubepods", *root.glob("*/kubepods")) if path.is_dir()]


def _end_processes(socket: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        alive = set(shims(socket))
        for cgroup in pod_cgroups():
            for path in cgroup.rglob("cgroup.procs"):
                try:
                    alive.update(map(int, path.read_text().split()))
                except OSError:
                    continue
        if not alive:
            return
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def _remove_cgroups() -> None:
    for top in pod_cgroups():
        folders = [top, *(path for path in top.rglob("*") if path.is_dir())]
        for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            for _ in range(50):  # the kernel needs a moment after the last process
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.02)
                else:
                    break


def _remove_dead_links(folder: Path) -> None:
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_symlink() and not path.exists():
                path.unlink()


def _read(name: str) -> str | None:
    try:
        return (Path("/proc/sys") / name).read_text().strip()
    except OSError:
        return None
