"""A proxy between the operator and the API server, through which every write is seen.

It can stop the operator's world at a chosen write: before the API server sees it, or after it was
stored and before the answer comes back.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import aiohttp
from aiohttp import web

from harness.control_plane import Api

When = Literal["before", "after"]
_HOPS = {"connection", "transfer-encoding", "content-encoding", "content-length", "host"}


class ApiProxy:
    """Listens on this machine without encryption; what it forwards is sent with this token."""

    def __init__(self, api: Api, folder: Path, token: str) -> None:
        """Start listening, in a thread."""
        self._api = api
        self._token = token
        self.writes: list[str] = []
        self.created: set[str] = set()
        self.passed: list[str] = []
        """Writes that were stored and answered."""
        self.cut: Callable[[str], When | None] = lambda write: None
        """(method and path of a write) -> when to cut it off; None lets it pass."""
        self.away = False
        """Nobody answers, and what was being answered is cut off."""
        self.killed: Callable[[], None] = lambda: None
        """Called at a cut, while the write waits."""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._port = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._ready.wait(20):
            raise RuntimeError("the proxy does not listen")
        self.kubeconfig = folder / "proxy-kubeconfig"
        self.kubeconfig.write_text(json.dumps(self._kubeconfig()))

    def stop(self) -> None:
        """Stop listening."""
        self.away = True  # streams end by themselves
        self._loop.call_soon_threadsafe(self._loop.call_later, 0.5, self._loop.stop)
        self._thread.join(20)

    def _kubeconfig(self) -> dict[str, object]:
        server = f"http://127.0.0.1:{self._port}"
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": server}}],
            "users": [{"name": "operator", "user": {"token": "of-the-operator"}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "operator"}}],
        }

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner, session = self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.run_until_complete(session.close())
        self._loop.close()

    async def _listen(self) -> tuple[web.AppRunner, aiohttp.ClientSession]:
        context = ssl.create_default_context(cafile=str(self._api.authority))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._port = runner.addresses[0][1]
        return runner, self._session

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        when: When | None = None
        write = ""
        if self.away:
            return self._abort(request)
        body = await request.read()
        if request.method != "GET":
            write = _name(request, body)
            # What exists already is not created again: such a request changes nothing.
            when = self.cut(write) if write not in self.created else None
            self.writes.append(write)
        if when == "before":
            return self._cut_off(request)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOPS}
        headers["Authorization"] = f"Bearer {self._token}"
        url = f"https://127.0.0.1:{self._api.port}{request.rel_url}"
        async with self._session.request(
            request.method, url, data=body or None, headers=headers
        ) as came:
            if request.method == "POST" and came.status == 201:
                self.created.add(write)
            if when == "after":
                await came.read()
                return self._cut_off(request)
            if write and came.status < 300:
                self.passed.append(write)
            kept = {k: v for k, v in came.headers.items() if k.lower() not in _HOPS}
            if came.headers.get("Content-Encoding"):
                kept["Content-Encoding"] = came.headers["Content-Encoding"]
            answer = web.StreamResponse(status=came.status, headers=kept)
            try:
                await answer.prepare(request)
                while chunk := await self._next(came.content):
                    await answer.write(chunk)
                await answer.write_eof()
            except (ConnectionError, aiohttp.ClientError):
                if request.transport is not None:
                    request.transport.abort()
            return answer

    def _cut_off(self, request: web.Request) -> web.StreamResponse:
        """End who asked, and leave it without an answer."""
        self.killed()
        return self._abort(request)

    def _abort(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)

    async def _next(self, stream: aiohttp.StreamReader) -> bytes:
        """Return what comes next; raises ConnectionError once the API server is to be away."""
        reading = asyncio.ensure_future(stream.readany())
        while not (await asyncio.wait({reading}, timeout=0.2))[0]:
            if self.away:
                reading.cancel()
                raise ConnectionError
        return reading.result()


def _name(request: web.Request, body: bytes) -> str:
    """Return method and path of a write, with the name of what is created."""
    if request.method != "POST":
        return f"{request.method} {request.path}"
    return f"POST {request.path}/{json.loads(body)['metadata']['name']}"


class EachWriteTwice:
    """Cuts before a write is seen, and when it comes again after it was stored; then the next.

    Events are named by what they say: they are written once, and nothing follows from them.
    """

    def __init__(self) -> None:
        """Begin with nothing cut."""
        self.cuts: list[tuple[str, str]] = []

    def __call__(self, write: str) -> str | None:
        """Return where to cut a write; None for one that passes."""
        if "/events/" in write:
            return None
        again = self.cuts[-1:] == [("before", write)]
        self.cuts.append(("after" if again else "before", write))
        return self.cuts[-1][0]
