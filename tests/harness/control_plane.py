"""A real control plane: etcd and kube-apiserver as processes, with certificates of their own.

``python -m harness.control_plane`` starts one and prints its kubeconfig until it is interrupted.
"""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.binaries import API_SERVER, ETCD, binary
from harness.certificates import Pair, make_authority, make_signing_key
from harness.processes import Process, free_port, start, wait_until

_STARTS = 3
"""A free port may be taken by somebody else before it is listened on."""


class ApiError(Exception):
    """An answer of the API server that is no success."""

    def __init__(self, code: int, status: Mapping[str, Any]) -> None:
        """Hold the HTTP code and the Status object."""
        self.code = code
        self.status = status
        self.message = str(status.get("message", ""))
        super().__init__(f"{code}: {self.message}")


@dataclass(frozen=True)
class Api:
    """The administrator's client: JSON in, JSON out."""

    port: int
    authority: Path
    identity: Pair

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> dict[str, Any]:
        """Send a request and return the answer; raises ApiError for a refusal."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.load_cert_chain(self.identity.certificate, self.identity.key)
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=context, timeout=60
        )
        try:
            data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": content_type, "Accept": accept})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        try:
            found = json.loads(text)
        except ValueError:
            found = {"message": text}
        if answer.status >= 400:
            raise ApiError(answer.status, found)
        return dict(found)

    def get(self, path: str) -> dict[str, Any]:
        """Read."""
        return self.request("GET", path)

    def table(self, path: str) -> dict[str, Any]:
        """Read as ``kubectl get`` does: columns and cells."""
        return self.request("GET", path, accept="application/json;as=Table;v=v1;g=meta.k8s.io")

    def create(self, path: str, body: Any, **query: str) -> dict[str, Any]:
        """Create in a collection; unknown fields are refused, as kubectl asks for."""
        return self.request("POST", _with(path, {"fieldValidation": "Strict", **query}), body)

    def replace(self, path: str, body: Any, **query: str) -> dict[str, Any]:
        """Replace an object."""
        return self.request("PUT", _with(path, {"fieldValidation": "Strict", **query}), body)

    def apply(self, path: str, body: bytes | Mapping[str, Any], **query: str) -> dict[str, Any]:
        """Apply on the server's side; ``body`` may be YAML as it stands in a file."""
        query = {"fieldManager": "tests", "force": "true", "fieldValidation": "Strict", **query}
        return self.request("PATCH", _with(path, query), body, "application/apply-patch+yaml")

    def delete(self, path: str) -> dict[str, Any]:
        """Delete."""
        return self.request("DELETE", path)


def _with(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{'&'.join(f'{key}={value}' for key, value in query.items())}"


@dataclass
class ControlPlane:
    """A running control plane; ``stop`` leaves nothing of it."""

    folder: Path
    kubeconfig: Path
    api: Api
    processes: list[Process] = field(default_factory=list)

    def stop(self) -> None:
        """Stop the processes, the newest first, and remove the folder."""
        for process in reversed(self.processes):
            process.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def start_control_plane(*, audit_policy: Path | None = None) -> ControlPlane:
    """Start etcd and kube-apiserver and wait until they answer.

    With an audit policy every request is written to ``audit.log`` in the folder.
    """
    programs = {name: binary(name) for name in (ETCD, API_SERVER)}
    for attempt in range(1, _STARTS + 1):
        folder = Path(tempfile.mkdtemp(prefix="finetune-control-plane-"))
        plane = _prepare(folder)
        try:
            _start_etcd_and_server(plane, programs, audit_policy)
        except RuntimeError as error:
            plane.stop()
            if attempt == _STARTS or "address already in use" not in str(error):
                raise
        except BaseException:
            plane.stop()
            raise
        else:
            return plane
    raise AssertionError


def _prepare(folder: Path) -> ControlPlane:
    authority = make_authority(folder / "pki")
    authority.issue(
        "server", "/CN=kube-apiserver", hosts=["localhost"], addresses=["127.0.0.1", "10.96.0.1"]
    )
    admin = authority.issue("admin", "/O=system:masters/CN=admin")
    make_signing_key(folder / "pki", "service-account")
    port = free_port()
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(_kubeconfig(port, authority.own.certificate, admin)))
    return ControlPlane(folder, kubeconfig, Api(port, authority.own.certificate, admin))


def _kubeconfig(port: int, authority: Path, admin: Pair) -> dict[str, Any]:
    """Return a kubeconfig; JSON is YAML."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tests",
        "clusters": [
            {
                "name": "tests",
                "cluster": {
                    "server": f"https://127.0.0.1:{port}",
                    "certificate-authority": str(authority),
                },
            }
        ],
        "users": [
            {
                "name": "admin",
                "user": {
                    "client-certificate": str(admin.certificate),
                    "client-key": str(admin.key),
                },
            }
        ],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "admin"}}],
    }


def _start_etcd_and_server(
    plane: ControlPlane, programs: Mapping[str, Path], audit_policy: Path | None
) -> None:
    folder, pki = plane.folder, plane.folder / "pki"
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    etcd = [
        programs[ETCD],
        f"--data-dir={folder / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
    ]
    plane.processes.append(start(ETCD, etcd, folder / "etcd.log"))
    server = [
        programs[API_SERVER],
        f"--etcd-servers={client}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        f"--secure-port={plane.api.port}",
        f"--tls-cert-file={pki / 'server.crt'}",
        f"--tls-private-key-file={pki / 'server.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        "--authorization-mode=RBAC",
        "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki / 'service-account.pub'}",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        "--service-cluster-ip-range=10.96.0.0/16",
    ]
    if audit_policy:
        server += [f"--audit-policy-file={audit_policy}", f"--audit-log-path={folder}/audit.log"]
    plane.processes.append(start(API_SERVER, server, folder / "kube-apiserver.log"))
    wait_until(lambda: _ready(plane.api), "the API server was ready", plane.processes)


def _ready(api: Api) -> bool:
    try:
        api.get("/readyz")
    except ApiError as error:
        return error.message == "ok"
    except OSError:
        return False
    return True


@contextmanager
def control_plane() -> Iterator[ControlPlane]:
    """Run a control plane for the length of a block."""
    plane = start_control_plane()
    try:
        yield plane
    finally:
        plane.stop()


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with control_plane() as plane:
        print(f"export KUBECONFIG={plane.kubeconfig}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
