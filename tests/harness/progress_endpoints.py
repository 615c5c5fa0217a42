"""Rank 0 of many pods at once: each listens where the operator asks a pod for its progress."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence

from aiohttp import web

from finetune_api.names import PROGRESS_PORT
from finetune_api.reports import Progress

Said = Callable[[str], Progress | None]
"""(address that was asked) -> what rank 0 says there; None: it is not there."""


class ProgressEndpoints:
    """Listens on addresses of this machine (127.0.0.0/8), all on the port of a trainer."""

    def __init__(self, addresses: Sequence[str], says: Said) -> None:
        """Start listening, in a thread."""
        self.asked: Counter[str] = Counter()
        """How often each address was asked."""
        self._says = says
        self._addresses = addresses
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(20)
        if self._failed is not None:
            raise RuntimeError(f"the endpoints do not listen: {self._failed}") from self._failed

    def stop(self) -> None:
        """Stop listening."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._listen())
        self._ready.set()
        if self._failed is None:
            self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _listen(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/progress", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            for address in self._addresses:
                await web.TCPSite(runner, address, PROGRESS_PORT).start()
        except OSError as error:
            self._failed = error
        return runner

    async def _answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        self.asked[address] += 1
        said = self._says(address)
        return web.json_response(said.to_json()) if said else web.Response(status=404)
