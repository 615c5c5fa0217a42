"""The real components of a cluster: built once from their Go modules, then cached.

A wrapper module in ``go/`` pins each with every dependency by hash. ``KUBEBUILDER_ASSETS`` names a
folder to take them from instead. ``python -m harness.binaries`` builds those that are named, or all
that tests need, with a word of progress.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

GO = Path(__file__).parent / "go"
_WANTED = re.compile(r"(?m)^go (\d+\.\d+\.\d+)$")
ETCD = "etcd"
API_SERVER = "kube-apiserver"
KUBECTL = "kubectl"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
KUBELET = "kubelet"
KUBE_PROXY = "kube-proxy"
COREDNS = "coredns"
TRAINING_OPERATOR = "training-operator"
KWOK = "kwok"
HELM = "helm"
PAUSE = "pause"
KUBE_SCORE = "kube-score"


@dataclass(frozen=True)
class Source:
    """Where the code of a binary comes from."""

    module: str
    """Folder of its wrapper module under ``go/``."""
    package: str


SOURCES = {
    ETCD: Source("etcd", "go.etcd.io/etcd/server/v3"),
    API_SERVER: Source("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    KUBECTL: Source("kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
    CONTROLLER_MANAGER: Source("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    SCHEDULER: Source("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
    KUBELET: Source("kubernetes", "k8s.io/kubernetes/cmd/kubelet"),
    KUBE_PROXY: Source("kubernetes", "k8s.io/kubernetes/cmd/kube-proxy"),
    COREDNS: Source("coredns", "."),
    TRAINING_OPERATOR: Source(
        "training-operator", "github.com/kubeflow/training-operator/cmd/training-operator.v1"
    ),
    KWOK: Source("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    HELM: Source("helm", "helm.sh/helm/v3/cmd/helm"),
    PAUSE: Source("pause", "."),
    KUBE_SCORE: Source("kube-score", "github.com/zegl/kube-score/cmd/kube-score"),
}


def cache_folder() -> Path:
    """Return the folder of all built binaries."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / (
        "finetunejob/binaries"
    )


def folder_of(module: str, cache: Path | None = None) -> Path:
    """Return the folder that holds the binaries of exactly these sources and this compiler."""
    digest = hashlib.sha256()
    for path in sorted(one for one in (GO / module).rglob("*") if one.is_file()):
        digest.update(path.read_bytes())
    digest.update(go_version().encode())
    return (cache or cache_folder()) / f"{module}-{digest.hexdigest()[:16]}"


def binary(name: str, cache: Path | None = None) -> Path:
    """Return the path of a binary, building it first where it is not there yet.

    Raises ``RuntimeError`` with what to install, or with the compiler's words.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (Path(assets) / name).is_file():
        return Path(assets) / name
    folder = folder_of(SOURCES[name].module, cache)
    path = folder / name
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():  # another process may have built it while this one waited
            _build(name, path)
    return path


@functools.cache
def go_version() -> str:
    """Return what Go says of itself; raises RuntimeError where it is not there, or too old."""
    wanted = max(
        tuple(map(int, match[1].split("."))) for match in map(_WANTED.search, _modules()) if match
    )
    text = ".".join(map(str, wanted))
    if not shutil.which("go"):
        raise RuntimeError(
            f"the components of Kubernetes are built from source: install Go {text} or newer, or"
            " point KUBEBUILDER_ASSETS to a folder that holds them"
        )
    said = subprocess.run(
        ["go", "env", "GOVERSION", "GOOS", "GOARCH", "GOTOOLCHAIN"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    has = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", said[0])
    # Another setting lets Go fetch the version that a module asks for.
    if has and said[3:] == ["local"] and tuple(int(part or 0) for part in has.groups()) < wanted:
        raise RuntimeError(f"Go {text} or newer is needed, and this is {said[0]}")
    return "\n".join(said[:3]) + "\n"


def _modules() -> list[str]:
    return [path.read_text() for path in sorted(GO.glob("*/go.mod"))]


def _flags(module: str) -> str:
    """Return linker flags: no symbols, and for Kubernetes the version that it reports."""
    found = re.search(r"k8s\.io/kubernetes (v\S+)", (GO / module / "go.mod").read_text())
    versions = [
        f"-X k8s.io/{part}/version.gitVersion={found[1]}"
        for part in ("component-base", "client-go/pkg")
        if found
    ]
    return " ".join(["-s", "-w", *versions])


def _build(name: str, path: Path) -> None:
    source = SOURCES[name]
    part = path.with_name(f".{name}.part")
    log = path.with_name(f".{name}.log")
    command = ["go", "build", "-trimpath", "-ldflags", _flags(source.module), "-o", str(part)]
    started = time.monotonic()
    with log.open("w") as out:
        build = subprocess.Popen(
            [*command, source.package],
            cwd=GO / source.module,
            env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-mod=readonly"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(build, name, started)
        finally:
            if build.poll() is None:
                build.terminate()
                build.wait()
    if build.returncode:
        raise RuntimeError(f"building {name} failed:\n{log.read_text()[-4000:]}")
    part.replace(path)
    log.unlink()
    _say(f"built {name} in {time.monotonic() - started:.0f} s: {path}")


def _wait(build: subprocess.Popen[bytes], name: str, started: float) -> None:
    while True:
        try:
            build.wait(15)
        except subprocess.TimeoutExpired:
            _say(f"building {name} ... {time.monotonic() - started:.0f} s")
        else:
            return


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Build what is not there yet: what is named, or all but what only a benchmark needs."""
    for name in sys.argv[1:] or [one for one in SOURCES if one != KWOK]:
        _say(f"{name}: {binary(name)}")


if __name__ == "__main__":
    main()
