"""The only client of the API server: JSON in, JSON out, every refusal a typed error."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal
from urllib.parse import urlencode

import aiohttp
import kopf

from finetune_operator.answers import (
    Conflict,
    Forbidden,
    Invalid,
    KubeError,
    NotFound,
    Object,
    Unavailable,
    error_of,
    held,
    not_its_own,
    parsed,
)
from finetune_operator.pace import Pace
from finetune_operator.pages import Listing, Page, page_of
from finetune_operator.resources import (
    BATCH_JOBS,
    CLAIMS,
    CONFIG_MAPS,
    EVENTS,
    FINETUNE_JOBS,
    NAMESPACES,
    PODS,
    PROFILES,
    PYTORCH_JOBS,
    SERVICES,
    Resource,
    resource_of,
)

PAGE = 50
"""Objects of one answer to a list. Users decide how large they are, up to 1.5 MiB each."""
BEGUN = 3
"""How often a list is begun whose pages expire before they are read."""
APART = 600.0
"""Seconds for which a kind is known to be kept in a store of its own."""
TIMEOUT = 30.0


def login() -> kopf.ConnectionInfo:
    """Return address and credentials: of the pod we run in, else of the kubeconfig.

    Raises ``kopf.LoginError`` where there are neither.
    """
    settings = kopf.OperatorSettings()
    found = kopf.login_with_service_account(settings=settings)
    found = found or kopf.login_with_kubeconfig(settings=settings)
    if found is None:
        raise kopf.LoginError("neither a service account nor a kubeconfig was found")
    return found


class Kube:
    """One pool of connections. Not for use by several event loops."""

    def __init__(self, connections: int = 32, pace: Pace | None = None) -> None:
        """Read the credentials; nothing is asked yet."""
        self._connections = connections
        self._pace = pace
        self._session: aiohttp.ClientSession | None = None
        self._server = ""
        self._kinds: dict[str, tuple[float, bool]] = {}
        self._apart: dict[str, float] = {}
        self._login = asyncio.Lock()
        self.last_answer: float = time.monotonic()
        """When the API server last answered, whatever it said."""

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """Read one object; raises ``NotFound``."""
        return await self._ask("GET", resource.path(namespace, name))

    async def find(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """Read one object; None where there is none."""
        try:
            return await self.get(resource, namespace, name)
        except NotFound:
            return None

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
    ) -> list[Object]:
        """Read all objects of a kind, from one point in time."""
        return (await self.listed(resource, namespace, labels, fields)).items

    async def listed(
        self,
        resource: Resource,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        since: int | None = None,
    ) -> Listing:
        """Read all objects of a kind, from one point in time, in pages.

        A list that takes so long that its pages expire is begun again. With ``since`` it
        may be older than now, but not than that version; otherwise the API server asks its store
        which is the newest, and waits until it knows that, for up to a tenth of a second.
        """
        found: list[Object] = []
        version = None
        async for page in self.pages(resource, namespace, labels, fields, since):
            if page.begins:
                found.clear()
            found.extend(page.items)
            version = page.version
        return Listing(found, version)

    async def pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        since: int | None = None,
    ) -> AsyncGenerator[Page, None]:
        """Read all objects of a kind, from one point in time, a few at a time.

        Who keeps little of each holds no more than one page in memory, however many there are. A
        page that ``begins`` after others says that those do not count: the list was begun again.
        """
        match = {"resourceVersion": str(since), "resourceVersionMatch": "NotOlderThan"}
        if self._apart.get(resource.plural, 0.0) > time.monotonic():
            since = None
        first = {} if since is None else match
        query = {"limit": str(PAGE), "labelSelector": labels, "fieldSelector": fields}
        query = {name: text for name, text in query.items() if text}
        token, begun = "", 1
        while True:
            asked = query | ({"continue": token} if token else first)
            try:
                answer = await self._ask("GET", resource.path(namespace), query=asked)
            except NotFound:
                # The kind has gone: do not wait until what is known of it has grown old.
                self._kinds.pop(_kind_key(resource), None)
                raise
            except KubeError as error:
                if first and not token and "Too large resource version" in str(error):
                    # Kinds that are kept in stores of their own count by themselves. The answer
                    # takes seconds, so it is not asked for with each list.
                    self._apart[resource.plural] = time.monotonic() + APART
                    first = {}
                    continue
                if error.code != 410 or not token or begun == BEGUN:
                    raise
                token, begun = "", begun + 1
                continue
            page, token = page_of(resource, answer, begins=not token)
            yield page
            # Nothing of one page is held while the next is read.
            del page, answer
            if not token:
                return

    async def create(self, body: Object) -> Object:
        """Create an object; raises ``Conflict`` where one of this name exists."""
        resource = resource_of(body)
        path = resource.path(body["metadata"].get("namespace"))
        return await self._ask("POST", path, body, {"fieldManager": "finetune-operator"})

    async def replace_status(self, resource: Resource, body: Object) -> Object:
        """Write ``status``; raises ``Conflict`` where the object has changed since it was read.

        The body is the object as it was read, with its resourceVersion, and the new status.
        """
        metadata = body["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"], "status")
        return await self._ask("PUT", path, body, {"fieldManager": "finetune-operator"})

    async def patch(self, resource: Resource, body: Object, change: Mapping[str, Any]) -> Object:
        """Merge a change into this very object as it was read.

        Raises ``Conflict`` where it has changed since, or another has taken its name.
        """
        metadata = body["metadata"]
        very = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        path = resource.path(metadata.get("namespace"), metadata["name"])
        query = {"fieldManager": "finetune-operator"}
        return await self._ask("PATCH", path, {"metadata": very, **change}, query)

    async def delete(
        self,
        body: Mapping[str, Any],
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
    ) -> None:
        """Delete this very object, never another of its name; one that is gone is no error."""
        metadata = body["metadata"]
        resource = resource_of(body)
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            "preconditions": {"uid": metadata["uid"]},
        }
        try:
            path = resource.path(metadata.get("namespace"), metadata["name"])
            await self._ask("DELETE", path, options)
        except (NotFound, Conflict):
            return

    async def serves(self, resource: Resource, fresh: float = 60.0) -> bool:
        """Tell whether the cluster knows a kind; the answer is up to ``fresh`` seconds old.

        A kind is new before its group is listed, where who watches looks for it.
        """
        key = _kind_key(resource)
        at, known = self._kinds.get(key, (float("-inf"), False))
        if time.monotonic() - at < fresh:
            return known
        try:
            answer = await self._ask("GET", resource.root)
            names = {entry.get("name") for entry in held(answer, "resources")}
            known = resource.plural in names and (known or await self._is_listed(resource.group))
        except NotFound:
            known = False
        self._kinds[key] = (time.monotonic(), known)
        return known

    async def _is_listed(self, group: str) -> bool:
        answer = await self._ask("GET", "/apis")
        return not group or group in {entry.get("name") for entry in held(answer, "groups")}

    async def log(
        self, namespace: str, pod: str, container: str, *, lines: int, limit: int
    ) -> bytes:
        """Read the end of a container's log: so many lines, and never more bytes than ``limit``."""
        query = {"container": container, "tailLines": str(lines), "limitBytes": str(limit)}
        query = {name: text for name, text in query.items() if text}
        path = PODS.path(namespace, pod, "log")
        session = await self._connected()
        try:
            url = f"{self._server}{path}?{urlencode(query)}"
            async with session.get(url, allow_redirects=False) as answer:
                found = b""
                async for chunk in answer.content.iter_chunked(16 * 1024):
                    found += chunk
                    if len(found) >= limit:
                        break
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(0, f"no answer to GET {path}: {error!r}") from error
        found = found[:limit]
        if answer.status >= 400:
            text = found.decode(errors="replace")
            raise error_of(answer.status, parsed(text) or {}, text, None)
        if answer.status >= 300:
            raise not_its_own(answer.status, f"GET {path}", found.decode(errors="replace"))
        return found

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Object:
        if self._pace is not None:
            await self._pace.turn()
        session = await self._connected()
        code, text, after = await self._send(session, method, path, body, query)
        if code == 401:
            # Tokens of service accounts are renewed on the disk; what we read has expired.
            await self._log_in_again(session)
            session = await self._connected()
            code, text, after = await self._send(session, method, path, body, query)
        self.last_answer = time.monotonic()
        answer = parsed(text)
        if code >= 400:
            raise error_of(code, answer or {}, text, after)
        if code >= 300 or answer is None:
            raise not_its_own(code, f"{method} {path}", text)
        return answer

    async def _send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, str] | None,
    ) -> tuple[int, str, float | None]:
        url = self._server + path + (f"?{urlencode(query)}" if query else "")
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Content-Type": kind} if body is not None else {}
        try:
            # The API server never leads elsewhere; a proxy that wants a login does.
            async with session.request(
                method, url, json=body, headers=headers, allow_redirects=False
            ) as answer:
                text = await answer.text()
                after = answer.headers.get("Retry-After", "")
                return answer.status, text, float(after) if after.isdigit() else None
        except (aiohttp.ClientError, TimeoutError, OSError, UnicodeDecodeError) as error:
            raise Unavailable(0, f"no answer to {method} {path}: {error!r}") from error

    async def _connected(self) -> aiohttp.ClientSession:
        async with self._login:
            if self._session is None:
                try:
                    info = await asyncio.to_thread(login)
                    context = info.as_ssl_context()
                except (kopf.LoginError, OSError, ValueError) as error:
                    # What is mounted may be replaced at this moment.
                    raise Unavailable(0, f"the credentials cannot be read: {error!r}") from error
                self._server = info.server.rstrip("/")
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=self._connections, ssl=context),
                    headers={**info.as_http_headers(), "User-Agent": "finetune-operator"},
                    timeout=aiohttp.ClientTimeout(total=TIMEOUT, connect=10.0),
                    json_serialize=_compact,
                )
            return self._session

    async def _log_in_again(self, session: aiohttp.ClientSession) -> None:
        async with self._login:
            if self._session is session:
                self._session = None
                # Others may be reading answers of this session; the last of them closes it.
                asyncio.get_running_loop().call_later(
                    TIMEOUT, lambda: asyncio.ensure_future(session.close())
                )


def _kind_key(resource: Resource) -> str:
    return f"{resource.root}/{resource.plural}"


def _compact(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def owner_of(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the owner that controls an object; empty where there is none."""
    for owner in (body.get("metadata") or {}).get("ownerReferences") or ():
        if owner.get("controller"):
            return dict(owner)
    return {}


def uid_of(body: Mapping[str, Any]) -> str:
    """Return the uid of an object."""
    return str((body.get("metadata") or {}).get("uid") or "")


def is_ending(body: Mapping[str, Any]) -> bool:
    """Tell whether an object was told to go."""
    return bool((body.get("metadata") or {}).get("deletionTimestamp"))


__all__ = [
    "BATCH_JOBS",
    "CLAIMS",
    "CONFIG_MAPS",
    "EVENTS",
    "FINETUNE_JOBS",
    "NAMESPACES",
    "PODS",
    "PROFILES",
    "PYTORCH_JOBS",
    "SERVICES",
    "Conflict",
    "Forbidden",
    "Invalid",
    "Kube",
    "KubeError",
    "Listing",
    "NotFound",
    "Object",
    "Page",
    "Resource",
    "Unavailable",
    "is_ending",
    "login",
    "owner_of",
    "resource_of",
    "uid_of",
]
