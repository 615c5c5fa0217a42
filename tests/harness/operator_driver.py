"""The operator as a process under its own service account, and a namespace for it to work in."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness import chart
from harness.certificates import Pair
from harness.control_plane import Api, until
from harness.processes import Process, start

IMAGE = "registry.example/trainer@sha256:" + "c" * 64
JOBS = "/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs"


def make_namespace(api: Api, name: str) -> str:
    """Create a namespace with the service account that a controller would make."""
    api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    api.create(f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})
    return name


def release_for(namespaces: str) -> str:
    """Return the release whose operator serves these namespaces, separated by commas.

    Each set has one of its own, so that the rights of two operators never mix.
    """
    return f"{chart.RELEASE}-{hashlib.sha256(namespaces.encode()).hexdigest()[:8]}"


def user_for(namespaces: str) -> str:
    """Return the name that the audit log has for the operator of these namespaces."""
    return chart.user_of(release_for(namespaces))


def operator_token(api: Api, namespaces: str) -> str:
    """Return a token of a service account that has the chart's rights in these namespaces.

    No namespace: the rights of an operator that serves all of them.
    """
    release = release_for(namespaces)
    chart.grant(api, [name for name in namespaces.split(",") if name], release)
    return chart.token(api, release)


def own_kubeconfig(kubeconfig: Path, namespaces: str, folder: Path) -> Path:
    """Return the operator's own kubeconfig, made with the administrator's.

    One that is not the administrator's, such as a proxy's, is returned as it is.
    """
    config = json.loads(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    certificate = Path(user.get("client-certificate", ""))
    if certificate.stem != "admin":
        return kubeconfig
    port = int(cluster["server"].rpartition(":")[2])
    authority = Path(cluster["certificate-authority"])
    api = Api(port, authority, Pair(certificate, Path(user["client-key"])))
    config["users"][0]["user"] = {"token": operator_token(api, namespaces)}
    path = folder / f"{release_for(namespaces)}.kubeconfig"
    path.write_text(json.dumps(config))
    return path


def start_operator(kubeconfig: Path, namespace: str, log: Path, *flags: str) -> Process:
    """Start the operator for one namespace, or several with commas; its log is in the file.

    With the administrator's kubeconfig it runs as its service account, with the chart's rights.
    """
    own = own_kubeconfig(kubeconfig, namespace, log.parent)
    command = [sys.executable, "-m", "finetune_operator.main"]
    command += ["--namespaces", namespace] if namespace else []
    command += ["--trainer-image", IMAGE, "--probe-address", "127.0.0.1"]
    command += ["--probe-port", "0", "--relist-seconds", "5", "--workers", "2", *flags]
    environment = {"KUBECONFIG": str(own), "PYTHONDONTWRITEBYTECODE": "1"}
    return start("operator", command, log, {**os.environ, **environment})


@contextmanager
def operator(kubeconfig: Path, namespace: str, log: Path, *flags: str) -> Iterator[Process]:
    """Run the operator for the length of a block."""
    process = start_operator(kubeconfig, namespace, log, *flags)
    try:
        yield process
    finally:
        process.stop(60)


def wait_for(what: Callable[[], Any], process: Process | None = None, timeout: float = 60.0) -> Any:
    """Ask until the answer is true and return it; fails with the operator's log."""
    return until(what, "what was waited for", timeout, [process] if process is not None else ())


def status_of(api: Api, namespace: str, name: str) -> dict[str, Any]:
    """Return the status of a job; empty before it has one."""
    found = api.get(f"{JOBS.format(namespace=namespace)}/{name}")
    return dict(found.get("status") or {})


class Watched:
    """Every status that a job had, in order, from a watch of the API server."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        """Begin with what is there now."""
        self._namespace, self._name = namespace, name
        self.statuses: list[dict[str, Any]] = []
        context = ssl.create_default_context(cafile=str(api.authority))
        context.load_cert_chain(api.identity.certificate, api.identity.key)
        self._connection = http.client.HTTPSConnection(
            "127.0.0.1", api.port, context=context, timeout=300
        )
        self._connection.connect()
        assert self._connection.sock is not None
        self._connection.sock.settimeout(None)  # for as long as nothing happens to the job
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        assert self._connection.sock is not None
        with suppress(OSError):  # the API server has ended it
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._connection.close()

    def phases(self) -> list[str]:
        """Return the phases that the job went through, each once where it follows itself."""
        found: list[str] = []
        for status in self.statuses:
            phase = status.get("phase")
            if phase and phase not in found[-1:]:
                found.append(phase)
        return found

    def _follow(self) -> None:
        path = JOBS.format(namespace=self._namespace)
        self._connection.request(
            "GET", f"{path}?watch=1&fieldSelector=metadata.name%3D{self._name}"
        )
        answer = self._connection.getresponse()
        buffer = b""
        while True:
            try:
                chunk = answer.read1(65536)
            except (OSError, http.client.HTTPException, ValueError):
                return
            if not chunk:
                return
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                try:
                    found = json.loads(line)
                except ValueError:  # the rest of an encrypted stream that was cut off
                    return
                self.statuses.append(found["object"].get("status") or {})
