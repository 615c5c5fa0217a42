"""How the library that watches logs in: again and again, for as long as it is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Any

import kopf

from finetune_operator import kube

LONGEST = 30.0
"""Seconds between two logins while each is refused."""
CALM = 60.0
"""Seconds after which a login that is asked for has nothing to do with the one before."""


class Logins:
    """A login handler that has always something to give.

    The API server may refuse a good token for a moment, as it starts or as what it asks is away.
    The library takes no credentials that equal refused ones, and ends when it has none.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        """Nobody has logged in yet."""
        self._clock = clock
        self._sleep = sleep
        self._count = 0
        self._pause = 0.0
        self._last = float("-inf")

    async def __call__(self, **_: Any) -> kopf.ConnectionInfo:
        """Return the credentials as they are now, later each time that they are asked for at once."""
        again = self._clock() - self._last < CALM
        self._pause = min(LONGEST, self._pause * 2 or 1.0) if again else 0.0
        if self._pause:
            await self._sleep(self._pause)
        self._last = self._clock()
        self._count += 1
        info = await asyncio.to_thread(kube.login)
        # What is counted makes it another one, and means nothing: there are no two at a time.
        return dataclasses.replace(info, priority=self._count)
