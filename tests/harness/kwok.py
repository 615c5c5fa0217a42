"""Many nodes that are not there: kwok says for their kubelets that pods run, and end.

Everything else is real: API server, controller-manager, scheduler, training-operator. Nothing
needs root.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import controllers
from harness.binaries import KWOK, TRAINING_OPERATOR, binary
from harness.control_plane import ControlPlane, start_control_plane
from harness.definitions import apply_definitions
from harness.played_runs import Run, said
from harness.processes import free_port, wait_until
from harness.program import Program, flags

STAGES = Path(__file__).with_name("kwok_stages.yaml")
PREPARED = "tests.finetune.dev/prepared"
"""Annotation of pods: when their preparation is done, a time or a duration."""
LOCAL = "127.0.0.1"
PODS = "127.2.0.1/16"
"""Addresses of pods are addresses of this machine, so that one can listen there."""
ENDPOINTS = ("endpoints-controller", "endpointslice-controller")
"""Left out: the API server refuses such addresses in endpoints, and they would try again for ever."""
CAPACITY = {"cpu": "100k", "memory": "1000Ti", "pods": "10k", "nvidia.com/gpu": "10k"}
CERTIFICATE = Path("/tmp/k8s-webhook-server/serving-certs")
"""training-operator does not start without one here, whether or not its webhook is used."""


@dataclass(frozen=True)
class ClientLimits:
    """What a client of the API server may ask of it; twice as many requests go out at once."""

    rate: int = 200
    """Requests a second."""
    threads: int = 8
    """Objects that it works on at the same time."""


@dataclass
class Fleet:
    """A control plane with controllers and fake nodes."""

    plane: ControlPlane
    training_operator: Program
    others: list[Program]


@contextmanager
def fleet(
    folder: Path,
    *,
    nodes: int = 20,
    audit_policy: Path | None = None,
    limits: ClientLimits = ClientLimits(),
) -> Iterator[Fleet]:
    """Run a control plane with so many fake nodes for the length of a block.

    ``limits`` are those of training-operator. controller-manager and scheduler have some that are
    not what is measured: 300 requests a second.
    """
    plane = start_control_plane(audit_policy=audit_policy)
    programs: list[Program] = []
    with contextlib.ExitStack() as stack:
        stack.callback(plane.stop, 3.0)
        stack.callback(lambda: [one.stop(3.0) for one in reversed(programs)])
        apply_definitions(plane)
        controllers.apply_definitions(plane.api)
        for index in range(nodes):
            plane.api.create("/api/v1/nodes", _node(f"fake-{index}"))
        programs += [
            controllers.controller_manager(plane, folder, 40.0, LOCAL, without=ENDPOINTS),
            controllers.scheduler(plane, folder, LOCAL),
            _kwok(plane, folder),
        ]
        stack.enter_context(_certificate(plane))
        programs.append(_training_operator(plane, folder, limits))
        for program in programs:
            program.start()
        processes = [one.process for one in programs if one.process is not None]
        wait_until(lambda: _ready(plane, nodes), "all nodes were ready", processes)
        yield Fleet(plane, programs[-1], programs[:-1])


def stages() -> str:
    """Return the stages, with what a preparation leaves as its termination message."""
    message = json.dumps(
        said("prepare", "JOB", 1, 0, Run()).to_json(), separators=(",", ":"), sort_keys=True
    )
    if "'" in message or "{{" in message:
        raise RuntimeError("the message cannot stand in a template")
    return STAGES.read_text().replace("MESSAGE", message.replace('"JOB"', '"{{ $uid }}"'))


def _node(name: str) -> dict[str, object]:
    return {
        "metadata": {"name": name, "labels": {"type": "kwok"}},
        "status": {"capacity": CAPACITY, "allocatable": CAPACITY},
    }


def _ready(plane: ControlPlane, nodes: int) -> bool:
    found = [
        condition
        for node in plane.api.get("/api/v1/nodes")["items"]
        for condition in node["status"].get("conditions") or ()
        if condition["type"] == "Ready" and condition["status"] == "True"
        if not node["spec"].get("taints")
    ]
    return len(found) == nodes


def _kwok(plane: ControlPlane, folder: Path) -> Program:
    config = folder / "kwok.yaml"
    config.write_text(stages())
    options = {
        "kubeconfig": plane.kubeconfig_of("kwok", "/O=system:masters/CN=kwok", LOCAL),
        "config": config,
        "manage-all-nodes": "true",
        "cidr": PODS,
        "node-ip": LOCAL,
        "node-lease-duration-seconds": 40,
        "server-address": f"{LOCAL}:{free_port()}",
    }
    return Program(KWOK, [binary(KWOK), *flags(options)], folder / "kwok.log")


def _training_operator(plane: ControlPlane, folder: Path, limits: ClientLimits) -> Program:
    """Return training-operator, whose validation of PyTorchJobs is not asked for."""
    namespace = "kubeflow"
    plane.api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    secret = {"metadata": {"name": "training-operator-webhook-cert"}}
    plane.api.create(f"/api/v1/namespaces/{namespace}/secrets", secret)
    options = {
        "kubeconfig": plane.kubeconfig_of(
            TRAINING_OPERATOR, f"/O=system:masters/CN={TRAINING_OPERATOR}", LOCAL
        ),
        "enable-scheme": "pytorchjob",
        "metrics-bind-address": f"{LOCAL}:{free_port()}",
        "health-probe-bind-address": f"{LOCAL}:{free_port()}",
        "webhook-server-port": free_port(),
        "controller-threads": limits.threads,
        "kube-api-qps": limits.rate,
        "kube-api-burst": 2 * limits.rate,
        "zap-log-level": "error",
    }
    command = [binary(TRAINING_OPERATOR), *flags(options)]
    return Program(TRAINING_OPERATOR, command, folder / "training-operator.log")


@contextmanager
def _certificate(plane: ControlPlane) -> Iterator[None]:
    """Have a certificate where training-operator wants one; one that is there stays as it is."""
    if (CERTIFICATE / "tls.crt").exists():
        yield
        return
    pair = plane.authority.issue("webhook", "/CN=training-operator", hosts=["localhost"])
    CERTIFICATE.mkdir(parents=True, exist_ok=True)
    ours = pair.certificate.read_bytes()
    shutil.copy(pair.certificate, CERTIFICATE / "tls.crt")
    shutil.copy(pair.key, CERTIFICATE / "tls.key")
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if (CERTIFICATE / "tls.crt").read_bytes() == ours:
                shutil.rmtree(CERTIFICATE.parent)


def main() -> None:
    """Start a fleet and stop it again: whether everything is there."""
    with tempfile.TemporaryDirectory() as name, fleet(Path(name)) as found:
        print(f"{len(found.others) + 1} programs run, all nodes are ready")


if __name__ == "__main__":
    main()
