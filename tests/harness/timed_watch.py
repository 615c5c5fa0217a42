"""When each change reached a watcher: the same clock and the same way for whoever made it."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

from harness.control_plane import Api, ApiError

METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_ADDED = b'{"type":"ADDED"'


def connect(api: Api, timeout: float = 60.0) -> http.client.HTTPSConnection:
    """Return a connection as the administrator."""
    context = ssl.create_default_context(cafile=str(api.authority))
    context.load_cert_chain(api.identity.certificate, api.identity.key)
    connection = http.client.HTTPSConnection(
        "127.0.0.1", api.port, context=context, timeout=timeout
    )
    connection.connect()
    return connection


class Creator:
    """Creates objects one after the other over one connection."""

    def __init__(self, api: Api) -> None:
        """Connect."""
        self._connection = connect(api)

    def create(self, path: str, body: dict[str, Any]) -> None:
        """Create an object; raises ``ApiError``."""
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", path, json.dumps(body), headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 400:
            raise ApiError(answer.status, json.loads(text))

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()


class TimedWatch:
    """Follows a collection in a thread; lines are kept as they came and read afterwards."""

    def __init__(self, api: Api, path: str, *, metadata: bool = False) -> None:
        """Begin with what is there now; ``metadata``: spec and status are left out."""
        self.added = 0
        """How many objects have appeared."""
        self.last_added = 0.0
        """When the newest of them did."""
        self._lines: list[tuple[float, bytes]] = []
        self._connection = connect(api, 3600.0)
        query = "&" if "?" in path else "?"
        headers = {"Accept": METADATA if metadata else "application/json"}
        self._connection.request("GET", f"{path}{query}watch=1", headers=headers)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def wait(self, number: int, seconds: float, what: str) -> float:
        """Wait until so many have appeared; returns when the last one did."""
        deadline = time.monotonic() + seconds
        while self.added < number:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.added} of {number} {what} after {seconds:.0f} s")
            time.sleep(0.02)
        return self.last_added

    def stop(self) -> None:
        """End the watch."""
        if self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._connection.close()

    def changes(self) -> Iterator[tuple[float, str, dict[str, Any]]]:
        """Yield (time, type, object) of everything that came."""
        for at, line in tuple(self._lines):
            found = json.loads(line)
            yield at, found["type"], found["object"]

    def _follow(self) -> None:
        answer = self._connection.getresponse()
        buffer = b""
        while True:
            try:
                chunk = answer.read1(1 << 20)
            except (OSError, http.client.HTTPException, ValueError):
                return
            if not chunk:
                return
            now = time.monotonic()
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                if not line.endswith(b"}"):  # the rest of an encrypted stream that was cut off
                    return
                self._lines.append((now, line))
                if line.startswith(_ADDED):
                    self.last_added = now
                    self.added += 1
