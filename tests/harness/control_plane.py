"""A real control plane: etcd and kube-apiserver as processes, with certificates of their own.

``python -m harness.control_plane`` starts one and prints its kubeconfig until it is interrupted.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.binaries import API_SERVER, ETCD, binary
from harness.certificates import Authority, Pair, make_authority, make_signing_key
from harness.processes import Process, ask_until, free_port, wait_until
from harness.program import Program, flags

PASSING = frozenset({404, 429, 500, 503, 504})
"""Answers that a wait goes on after: not there yet, and too much to do."""
_STARTS = 3
"""A free port may be taken by somebody else before it is listened on."""
_IDLE = threading.local()
"""Of each thread, the connections that wait for another read: a handshake costs more than most answers."""


class ApiError(Exception):
    """An answer of the API server that is no success."""

    def __init__(self, code: int, status: Mapping[str, Any]) -> None:
        """Hold the HTTP code and the Status object."""
        self.code = code
        self.status = status
        self.message = str(status.get("message", ""))
        super().__init__(f"{code}: {self.message}")


def until(
    ask: Callable[[], Any], what: str, timeout: float = 60.0, processes: Sequence[Process] = ()
) -> Any:
    """Ask until the answer is true and return it; not found, and not now, count as not yet.

    With time up, RuntimeError has the logs of the processes.
    """

    def found() -> Any:
        try:
            return ask()
        except ApiError as error:
            if error.code not in PASSING:
                raise
            return None

    return ask_until(found, what, timeout, processes)


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
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
        headers = {"Content-Type": content_type, "Accept": accept}
        if method == "GET":
            code, text = self._read(path, headers)
        else:
            code, text, connection = self._ask(self._connect(), method, path, data, headers)
            connection.close()
        try:
            found = json.loads(text)
        except ValueError:
            found = {"message": text}
        if code >= 400:
            raise ApiError(code, found)
        return dict(found)

    def _read(self, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        """Read over the connection of the last time, or a new one where that has ended."""
        idle: dict[Any, http.client.HTTPSConnection] = _IDLE.__dict__
        key = f"{os.getpid()} {self.port} {self.identity.certificate}"
        if connection := idle.pop(key, None):
            try:
                code, text, idle[key] = self._ask(connection, "GET", path, None, headers)
            except TimeoutError:
                raise
            except (OSError, http.client.HTTPException):
                pass  # the server was restarted, or has closed it
            else:
                return code, text
        code, text, idle[key] = self._ask(self._connect(), "GET", path, None, headers)
        return code, text

    def _connect(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self.authority))
        context.load_cert_chain(self.identity.certificate, self.identity.key)
        return http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=60)

    @staticmethod
    def _ask(
        connection: http.client.HTTPSConnection,
        method: str,
        path: str,
        data: str | bytes | None,
        headers: Mapping[str, str],
    ) -> tuple[int, str, http.client.HTTPSConnection]:
        """Return code, text and the connection, which is closed where that fails."""
        try:
            connection.request(method, path, data, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), connection
        except BaseException:
            connection.close()
            raise

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
    authority: Authority
    etcd: Program | None = None
    server: Program | None = None

    @property
    def processes(self) -> list[Process]:
        """What was started, the oldest first."""
        programs = [one for one in (self.etcd, self.server) if one is not None]
        return [one.process for one in programs if one.process is not None]

    def start_server(self) -> None:
        """Start kube-apiserver again after ``stop_server`` and wait until it answers."""
        assert self.server is not None
        self.server.start()
        wait_until(lambda: _ready(self.api), "the API server was ready", self.processes)

    def stop_server(self, grace: float = 5.0) -> None:
        """Stop kube-apiserver; etcd keeps what is stored."""
        assert self.server is not None
        self.server.stop(grace)

    def kubeconfig_of(self, name: str, subject: str, address: str) -> Path:
        """Write a kubeconfig for a new identity (``/O=group/CN=user``); returns its path."""
        path = self.folder / "pki" / f"{name}.kubeconfig"
        identity = self.authority.issue(name, subject)
        path.write_text(
            json.dumps(
                _kubeconfig(address, self.api.port, self.authority.own.certificate, identity)
            )
        )
        return path

    def stop(self, grace: float = 10.0) -> None:
        """Stop the processes, the newest first, and remove the folder."""
        for program in (self.server, self.etcd):
            if program is not None:
                program.stop(grace)
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class ServerChoices:
    """How the API server of a cluster differs from one that stands alone.

    ``address`` is where nodes and pods reach it; ``options`` returns further flags, given the
    authority that signs for them.
    """

    address: str = "127.0.0.1"
    hosts: tuple[str, ...] = ()
    options: Callable[[Authority], Mapping[str, object]] = lambda authority: {
        "bind-address": "127.0.0.1",
        "endpoint-reconciler-type": "none",
    }


def start_control_plane(
    *,
    audit_policy: Path | None = None,
    parent: Path | None = None,
    choices: ServerChoices | None = None,
) -> ControlPlane:
    """Start etcd and kube-apiserver and wait until they answer.

    With an audit policy every request is written to ``audit.log`` in the folder. The folder is
    made in ``parent``, or where temporary files lie.
    """
    for name in (ETCD, API_SERVER):
        binary(name)
    choices = choices or ServerChoices()
    for attempt in range(1, _STARTS + 1):
        folder = Path(tempfile.mkdtemp(prefix="finetune-control-plane-", dir=parent))
        plane = _prepare(folder, choices)
        try:
            _start_etcd_and_server(plane, audit_policy, choices)
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


def _prepare(folder: Path, choices: ServerChoices) -> ControlPlane:
    authority = make_authority(folder / "pki")
    authority.issue(
        "server",
        "/CN=kube-apiserver",
        hosts=["localhost", *choices.hosts],
        addresses=list(dict.fromkeys(["127.0.0.1", "10.96.0.1", choices.address])),
    )
    admin = authority.issue("admin", "/O=system:masters/CN=admin")
    make_signing_key(folder / "pki", "service-account")
    port = free_port()
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(_kubeconfig("127.0.0.1", port, authority.own.certificate, admin))
    )
    api = Api(port, authority.own.certificate, admin)
    return ControlPlane(folder, kubeconfig, api, authority)


def _kubeconfig(address: str, port: int, authority: Path, identity: Pair) -> dict[str, Any]:
    """Return a kubeconfig; JSON is YAML."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tests",
        "clusters": [
            {
                "name": "tests",
                "cluster": {
                    "server": f"https://{address}:{port}",
                    "certificate-authority": str(authority),
                },
            }
        ],
        "users": [
            {
                "name": identity.key.stem,
                "user": {
                    "client-certificate": str(identity.certificate),
                    "client-key": str(identity.key),
                },
            }
        ],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": identity.key.stem}}],
    }


def _start_etcd_and_server(
    plane: ControlPlane, audit_policy: Path | None, choices: ServerChoices
) -> None:
    folder, pki = plane.folder, plane.folder / "pki"
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    etcd = {
        "data-dir": folder / "etcd",
        "unsafe-no-fsync": "true",
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"default={peer}",
    }
    plane.etcd = Program(ETCD, [binary(ETCD), *flags(etcd)], folder / "etcd.log")
    plane.etcd.start()
    server: dict[str, object] = {
        "etcd-servers": client,
        "advertise-address": choices.address,
        "secure-port": plane.api.port,
        "tls-cert-file": pki / "server.crt",
        "tls-private-key-file": pki / "server.key",
        "client-ca-file": pki / "ca.crt",
        "authorization-mode": "RBAC",
        "allow-privileged": "true",
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "service-account-key-file": pki / "service-account.pub",
        "service-account-signing-key-file": pki / "service-account.key",
        "service-cluster-ip-range": "10.96.0.0/16",
    }
    if audit_policy:
        server |= {"audit-policy-file": audit_policy, "audit-log-path": folder / "audit.log"}
    server |= choices.options(plane.authority)
    log = folder / "kube-apiserver.log"
    plane.server = Program(API_SERVER, [binary(API_SERVER), *flags(server)], log)
    plane.start_server()


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
