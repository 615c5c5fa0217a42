"""The controllers of a cluster: controller-manager, scheduler, and training-operator with its CRD."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import network
from harness.binaries import (
    CONTROLLER_MANAGER,
    GO,
    SCHEDULER,
    TRAINING_OPERATOR,
    binary,
    cache_folder,
    folder_of,
)
from harness.certificates import make_authority
from harness.control_plane import Api, ControlPlane
from harness.processes import free_port, wait_until
from harness.program import Program, flags
from harness.scratch_images import BUSYBOX_IMAGE

_CLIENT = {"kube-api-qps": 300, "kube-api-burst": 500}
_MODULE = "github.com/kubeflow/training-operator"
_MANIFESTS = {
    "crd": "manifests/base/crds/kubeflow.org_pytorchjobs.yaml",
    "role": "manifests/base/rbac/role.yaml",
}
_NAMESPACE = "kubeflow"
_SERVING = Path(tempfile.gettempdir()) / "k8s-webhook-server"
"""training-operator looks for its certificate here and nowhere else."""


def controller_manager(
    plane: ControlPlane,
    folder: Path,
    node_grace: float,
    address: str = network.ADDRESS,
    *,
    without: Sequence[str] = (),
) -> Program:
    """Return kube-controller-manager; a node unheard of for ``node_grace`` seconds is NotReady.

    ``without``: names of controllers that are left out.
    """
    kubeconfig = plane.kubeconfig_of(
        "controller-manager", "/CN=system:kube-controller-manager", address
    )
    pki = plane.folder / "pki"
    options = {
        **_as(kubeconfig),
        "use-service-account-credentials": "true",
        "service-account-private-key-file": pki / "service-account.key",
        "root-ca-file": pki / "ca.crt",
        "cluster-signing-cert-file": pki / "ca.crt",
        "cluster-signing-key-file": pki / "ca.key",
        "allocate-node-cidrs": "false",
        "node-monitor-period": "1s",
        # A claim that is seen before its volume is bound when it is looked at again.
        "pvclaimbinder-sync-period": "1s",
        "node-monitor-grace-period": f"{node_grace:g}s",
        "controllers": ",".join(("*", *(f"-{name}" for name in without))),
    }
    command = [binary(CONTROLLER_MANAGER), *flags(options)]
    return Program(CONTROLLER_MANAGER, command, folder / "kube-controller-manager.log")


def scheduler(plane: ControlPlane, folder: Path, address: str = network.ADDRESS) -> Program:
    """Return kube-scheduler."""
    kubeconfig = plane.kubeconfig_of("scheduler", "/CN=system:kube-scheduler", address)
    command = [binary(SCHEDULER), *flags(_as(kubeconfig))]
    return Program(SCHEDULER, command, folder / "kube-scheduler.log")


def _as(kubeconfig: Path) -> dict[str, object]:
    return {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "bind-address": "127.0.0.1",
        "secure-port": free_port(),
        "leader-elect": "false",
        **_CLIENT,
    }


@dataclass(frozen=True)
class TrainingOperator:
    """training-operator under its own rights, with its validating webhook on."""

    program: Program
    probe_port: int
    webhook_port: int

    def start(self) -> None:
        """Start it and wait until its webhook answers."""
        process = self.program.start()
        wait_until(self._ready, "training-operator was ready", [process])

    def _ready(self) -> bool:
        import urllib.error
        import urllib.request

        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.probe_port}/readyz", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False


def apply_definitions(api: Api) -> None:
    """Apply the definition of PyTorchJob as the module of training-operator carries it."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/pytorchjobs.kubeflow.org"
    api.apply(path, _manifest("crd").read_bytes())

    def established() -> bool:
        conditions = api.get(path).get("status", {}).get("conditions") or []
        return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)

    wait_until(established, "PyTorchJob was established", [])


def prepare_training_operator(plane: ControlPlane, folder: Path) -> TrainingOperator:
    """Give training-operator its rights, its certificate and its webhook; nothing is started."""
    folder.mkdir(parents=True, exist_ok=True)
    user = f"system:serviceaccount:{_NAMESPACE}:training-operator"
    kubeconfig = plane.kubeconfig_of("training-operator", f"/CN={user}", network.ADDRESS)
    ports = {"metrics": free_port(), "probe": free_port(), "webhook": free_port()}
    _grant(plane.api, user)
    _webhook(plane.api, folder, ports["webhook"])
    options = {
        "kubeconfig": kubeconfig,
        "enable-scheme": "pytorchjob",
        "metrics-bind-address": f"127.0.0.1:{ports['metrics']}",
        "health-probe-bind-address": f"127.0.0.1:{ports['probe']}",
        "webhook-server-port": ports["webhook"],
        "controller-threads": 8,
        "kube-api-qps": 200,
        "kube-api-burst": 400,
        "pytorch-init-container-template-file": _init_container(folder),
        "zap-log-level": "info",
    }
    command = [binary(TRAINING_OPERATOR), *flags(options)]
    program = Program(TRAINING_OPERATOR, command, folder / "training-operator.log")
    return TrainingOperator(program, ports["probe"], ports["webhook"])


def _grant(api: Api, user: str) -> None:
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    api.create("/api/v1/namespaces", {"metadata": {"name": _NAMESPACE}})
    api.apply(f"{rbac}/clusterroles/training-operator", _manifest("role").read_bytes())
    group = "rbac.authorization.k8s.io"
    binding = {
        "metadata": {"name": "training-operator"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "training-operator"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    }
    api.create(f"{rbac}/clusterrolebindings", binding)
    # It fills this Secret itself and does not start without it.
    secret = {"metadata": {"name": "training-operator-webhook-cert"}}
    api.create(f"/api/v1/namespaces/{_NAMESPACE}/secrets", secret)


def _webhook(api: Api, folder: Path, port: int) -> None:
    pair = make_authority(folder / "pki").issue(
        "webhook", "/CN=training-operator", hosts=["localhost"], addresses=["127.0.0.1"]
    )
    forget_certificate()
    serving = _SERVING / "serving-certs"
    _SERVING.mkdir(mode=0o700)  # fails where somebody else's lies: nothing of theirs is touched
    serving.mkdir()
    shutil.copy(pair.certificate, serving / "tls.crt")
    shutil.copy(pair.key, serving / "tls.key")
    authority = (folder / "pki/ca.crt").read_bytes()
    hook = {
        # Under the name that training-operator knows it would replace the authority by its own.
        "metadata": {"name": "pytorchjobs.cluster"},
        "webhooks": [
            {
                "name": "validator.pytorchjob.training-operator.kubeflow.org",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "timeoutSeconds": 10,
                "clientConfig": {
                    "url": f"https://127.0.0.1:{port}/validate-kubeflow-org-v1-pytorchjob",
                    "caBundle": base64.b64encode(authority).decode(),
                },
                "rules": [
                    {
                        "apiGroups": ["kubeflow.org"],
                        "apiVersions": ["v1"],
                        "resources": ["pytorchjobs"],
                        "operations": ["CREATE", "UPDATE"],
                    }
                ],
            }
        ],
    }
    path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    api.create(path, hook)


def forget_certificate() -> None:
    """Remove the certificate that a cluster of this user left in its fixed place."""
    if _SERVING.is_dir() and not _SERVING.is_symlink() and _SERVING.stat().st_uid == os.getuid():
        shutil.rmtree(_SERVING)


def _init_container(folder: Path) -> Path:
    """Write the init container of workers that have a master; nslookup's exit code lies."""
    looks = (
        "for i in $(seq {{.MaxTries}}); do nslookup {{.MasterAddr}} 2>/dev/null"
        " | grep -q ^Name: && exit 0; sleep 0.3; done; exit 1"
    )
    container = {
        "name": "init-pytorch",
        "image": BUSYBOX_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", looks],
    }
    path = folder / "init-container.yaml"
    path.write_text(json.dumps([container]))
    return path


def _manifest(name: str) -> Path:
    """Return a file of the module's, kept beside the binary that was built from it."""
    kept = folder_of(TRAINING_OPERATOR, cache_folder()) / f"{name}.yaml"
    if not kept.is_file():
        answer = subprocess.run(
            ["go", "mod", "download", "-json", _MODULE],
            cwd=GO / TRAINING_OPERATOR,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "GOWORK": "off"},
        )
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(json.loads(answer.stdout)["Dir"]) / _MANIFESTS[name], kept)
    return kept
