"""/healthz, /readyz and /metrics. They fail when watching or the queue has stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from finetune_operator import metrics

STUCK = 300.0
"""Seconds after which a look that has not ended is stuck."""


@dataclass
class Health:
    """What the parts of the operator say of themselves; times are of a monotonic clock."""

    clock: Callable[[], float] = time.monotonic
    relist_every: float = 300.0
    watching: bool = False
    """It was asked of every kind whether it can be watched."""
    unserved: str = ""
    """Kinds that the API server does not serve yet."""
    deaf: str = ""
    """What cannot be watched, and why."""
    stopped: str = ""
    """Which part has ended that never should."""
    last_relist: float | None = None
    looking_since: dict[int, float] = field(default_factory=dict)
    """Worker to the beginning of the look that it is at."""
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        """Take the time of the start."""
        self._began = self.clock()

    def problem(self) -> str:
        """Return why the process must be started anew; empty when it need not."""
        if self.stopped:
            return f"{self.stopped} has stopped"
        now = self.clock()
        for worker, since in self.looking_since.items():
            if now - since > STUCK:
                return f"worker {worker} has been at one look for {now - since:.0f} s"
        return ""

    def unready(self) -> str:
        """Return why nothing can be expected of it now; empty when all is well."""
        problem = self.problem()
        if problem:
            return problem
        if self.unserved:
            return f"the API server does not serve {self.unserved}: definitions are missing"
        if not self.watching:
            return "the first lists were not seen yet"
        if self.deaf:
            return self.deaf
        if self.last_relist is None:
            return "the jobs were not listed yet"
        age = self.clock() - self.last_relist
        if age > 3 * self.relist_every:
            return f"the jobs were last listed {age:.0f} s ago"
        return ""

    @property
    def relist_age(self) -> float:
        """Seconds since all jobs were listed; before the first list, since the start."""
        return self.clock() - (self._began if self.last_relist is None else self.last_relist)


async def serve(health: Health, host: str, port: int) -> web.AppRunner:
    """Serve the probes and metrics; ``cleanup`` of what is returned ends it."""

    def answer(ask: Callable[[], str]) -> web.Response:
        problem = ask()
        return web.Response(text=problem or "ok", status=500 if problem else 200)

    async def healthz(request: web.Request) -> web.Response:
        del request
        return answer(health.problem)

    async def readyz(request: web.Request) -> web.Response:
        del request
        return answer(health.unready)

    async def read_metrics(request: web.Request) -> web.Response:
        del request
        return web.Response(body=metrics.text(), content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", read_metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host or None, port).start()
    return runner
