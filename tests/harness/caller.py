"""Somebody with a token, who asks the API server for things that may be refused."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from typing import Any

from harness.control_plane import Api


@dataclass(frozen=True)
class Caller:
    """A service account, to the API server."""

    api: Api
    """Where to ask; who is asked as is the token's."""
    token: str

    @classmethod
    def made(cls, api: Api, namespace: str, name: str) -> Caller:
        """Create a service account and return who has its token."""
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        api.create(accounts, {"metadata": {"name": name}})
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        return cls(api, api.create(f"{accounts}/{name}/token", request)["status"]["token"])

    def ask(self, method: str, path: str, body: Any = None) -> int:
        """Return the HTTP code of the answer."""
        context = ssl.create_default_context(cafile=str(self.api.authority))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.api.port, context=context, timeout=60
        )
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            return connection.getresponse().status
        finally:
            connection.close()
