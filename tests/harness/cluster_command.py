"""``make cluster``: a cluster that stays, with the operator and a team's namespace in it.

A process of its own holds the cluster after the command has ended; ``make cluster-down`` ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_cli.run.processes import boot_id, start_ticks
from harness import machine
from harness.access import Access
from harness.binaries import (
    API_SERVER,
    CONTROLLER_MANAGER,
    COREDNS,
    ETCD,
    HELM,
    KUBE_PROXY,
    KUBECTL,
    KUBELET,
    PAUSE,
    SCHEDULER,
    TRAINING_OPERATOR,
    binary,
    go_version,
)
from harness.certificates import Pair
from harness.cluster import Cluster, cache, clear, cluster, running
from harness.commands import run
from harness.control_plane import Api, ApiError

ROOT = Path(__file__).resolve().parents[2]
TEAM = "team-a"
_MODEL = ROOT / ".cache/models/smollm2-135m-instruct"
_BINARIES = (
    *(ETCD, API_SERVER, CONTROLLER_MANAGER, SCHEDULER, KUBELET, KUBE_PROXY),
    *(COREDNS, TRAINING_OPERATOR, PAUSE, KUBECTL, HELM),
)
_NEXT = """
The cluster runs until make cluster-down. Type:

  export KUBECONFIG={kubeconfig}
  export PATH={programs}:{venv}:$PATH
  kubectl apply -f examples/quickstart.yaml      # namespace {team}: restricted pods, a quota
  kubectl get finetunejobs --watch
  finetune watch quickstart

Images, and what the node keeps of them, stay in {cache}.
"""


@dataclass(frozen=True)
class Standing:
    """A cluster that ``make cluster`` made, as its process wrote it down."""

    pid: int
    access: Access


def command(words: list[str]) -> int:
    """Run ``up`` or ``down`` and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.cluster", description=__doc__)
    parser.add_argument("verb", choices=["up", "down", "serve"])
    verb = parser.parse_args(words).verb
    try:
        {"up": up, "down": down, "serve": serve}[verb]()
    except (RuntimeError, ApiError, OSError, subprocess.SubprocessError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def up() -> None:
    """Bring up the cluster, install the operator, and say what to type next."""
    began = time.monotonic()
    if (standing := _standing()) is not None:
        how = f"export KUBECONFIG={_kubeconfig()}, or stop it with make cluster-down"
        if not _kubeconfig().is_file():
            how = "its operator was not installed to the end; make cluster-down, then make cluster"
        raise RuntimeError(f"it runs already (process {standing.pid}): {how}")
    _kubeconfig().unlink(missing_ok=True)
    _packages()
    with _step("binaries of Kubernetes"):
        for name in _BINARIES:
            binary(name)
    with _step("images of operator and trainer"):
        from harness.images import operator_image, trainer_image

        operator, trainer = operator_image(), trainer_image()
    with _step("model SmolLM2-135M-Instruct"):
        fetch = ROOT / "examples/quickstart/fetch_model.py"
        run(sys.executable, fetch, _MODEL, timeout=1800)
    with _step("node"):
        access = _start().access
    with _step("operator, by its chart"):
        from harness.installation import install_operator

        install_operator(access, operator, trainer)
    with _step(f"namespace {TEAM} with volumes models, datasets and output"):
        _make_team(access)
    _write_kubeconfig(access)
    print(f"up in {time.monotonic() - began:.0f} s")
    programs, venv = _programs(), ROOT / ".venv/bin"
    words = {"kubeconfig": _kubeconfig(), "programs": programs, "venv": venv, "team": TEAM}
    print(_NEXT.format(**words, cache=cache()), end="")


def down() -> None:
    """Stop the cluster; nothing of it is left but what the cache keeps."""
    began = time.monotonic()
    standing, found = _standing(), running()
    if standing is not None:
        os.kill(standing.pid, signal.SIGTERM)
        while _standing() is not None:
            time.sleep(0.1)
            if time.monotonic() - began > 120:
                raise RuntimeError(f"process {standing.pid} does not end; see {_log()}")
    clear()  # refuses where another process holds a cluster
    for path in (_kubeconfig(), _ready()):
        path.unlink(missing_ok=True)
    shutil.rmtree(cache() / "bin", ignore_errors=True)
    what = "no cluster ran" if found is None else f"down in {time.monotonic() - began:.0f} s"
    print(f"cluster: {what}")


def serve() -> None:
    """Hold the cluster until SIGTERM; ``up`` starts this."""
    from harness.images import operator_image, trainer_image

    signal.signal(signal.SIGTERM, _end)
    images = [operator_image(), trainer_image()]
    try:
        with cluster(images, say=lambda text: print(text, flush=True)) as c:
            _write_down(c)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return
    finally:
        _ready().unlink(missing_ok=True)


def _end(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # the end is under way
    raise KeyboardInterrupt


def _packages() -> None:
    go_version()  # asked for first: what follows takes minutes
    if os.geteuid() == 0 and (missing := machine.missing_packages(images=True)):
        with _step(f"packages {' '.join(missing)}"):
            run("apt-get", "update", "--quiet", timeout=600)
            quiet = ["env", "DEBIAN_FRONTEND=noninteractive"]
            run(*quiet, *machine.install_command(missing), timeout=1800)
    clear()
    machine.check()


def _start() -> Standing:
    """Start the process that holds the cluster and follow what it says until all runs."""
    _ready().unlink(missing_ok=True)
    log = _log()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.cluster", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        )
    try:
        with log.open() as said:
            while not _ready().is_file():
                ended = process.poll() is not None
                for line in said:
                    print(f"      {line.rstrip()}", flush=True)
                if ended:
                    raise RuntimeError(f"the node did not start; see {log}")
                time.sleep(0.1)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    standing = _standing()
    assert standing is not None
    return standing


def _write_down(c: Cluster) -> None:
    facts = {
        "pid": os.getpid(),
        "boot": boot_id(),
        "start": start_ticks(os.getpid()),
        "folder": str(c.folder),
        "kubeconfig": str(c.kubeconfig),
        "port": c.api.port,
        "authority": str(c.api.authority),
        "identity": [str(c.api.identity.certificate), str(c.api.identity.key)],
    }
    part = _ready().with_suffix(".part")
    part.write_text(json.dumps(facts))
    part.replace(_ready())


def _standing() -> Standing | None:
    try:
        facts = json.loads(_ready().read_text())
    except (OSError, ValueError):
        return None
    # A process id is given out again, after a boot and before.
    if (facts.get("boot"), facts.get("start")) != (boot_id(), start_ticks(facts["pid"])):
        return None
    certificate, key = map(Path, facts["identity"])
    api = Api(facts["port"], Path(facts["authority"]), Pair(certificate, key))
    return Standing(facts["pid"], Access(api, Path(facts["kubeconfig"]), Path(facts["folder"])))


def _make_team(access: Access) -> None:
    from harness.tenant import make_tenant

    tenant = make_tenant(access, TEAM)
    shutil.copytree(_MODEL, tenant.claim("models") / _MODEL.name)
    shutil.copytree(ROOT / "examples/datasets", tenant.claim("datasets"), dirs_exist_ok=True)
    tenant.claim("output")


def _write_kubeconfig(access: Access) -> None:
    """Write a kubeconfig that begins in the team's namespace, and put kubectl and helm beside it."""
    facts = json.loads(access.kubeconfig.read_text())
    facts["contexts"][0]["context"]["namespace"] = TEAM
    _kubeconfig().touch(mode=0o600)
    _kubeconfig().write_text(json.dumps(facts, indent=1))
    _programs().mkdir(exist_ok=True)
    for name in (KUBECTL, HELM):
        link = _programs() / name
        link.unlink(missing_ok=True)
        link.symlink_to(binary(name))


def _programs() -> Path:
    return cache() / "bin"


def _kubeconfig() -> Path:
    return cache() / "kubeconfig"


def _ready() -> Path:
    return cache() / "standing.json"


def _log() -> Path:
    return cache() / "cluster.log"


@contextmanager
def _step(what: str) -> Iterator[None]:
    began = time.monotonic()
    print(f"{what} ...", flush=True)
    yield
    print(f"{what}: {time.monotonic() - began:.1f} s", flush=True)
