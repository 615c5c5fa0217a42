"""The client of the API server for one thread that asks all the time: it keeps its connection."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any

from harness.control_plane import Api, ApiError

_CLOSED = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


class KeptApi:
    """Asks as ``Api`` does, over one connection. Not for use by several threads."""

    def __init__(self, api: Api) -> None:
        """Connect with the first request."""
        self._api = api
        self._context = ssl.create_default_context(cafile=str(api.authority))
        self._context.load_cert_chain(api.identity.certificate, api.identity.key)
        self._connection: http.client.HTTPSConnection | None = None

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def get(self, path: str) -> dict[str, Any]:
        """Read."""
        return self.request("GET", path)

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """Send a request and return the answer; raises ApiError for a refusal."""
        reused = self._connection is not None
        try:
            status, text = self._send(method, path, body, content_type)
        except _CLOSED:
            self.close()
            if not reused:
                raise
            status, text = self._send(method, path, body, content_type)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise OSError(repr(error)) from error
        try:
            found = json.loads(text)
        except ValueError:
            found = {"message": text}
        if status >= 400:
            raise ApiError(status, found)
        return dict(found)

    def _send(self, method: str, path: str, body: Any, content_type: str) -> tuple[int, str]:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                "127.0.0.1", self._api.port, context=self._context, timeout=60
            )
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, {"Content-Type": content_type})
        answer = self._connection.getresponse()
        return answer.status, answer.read().decode()
