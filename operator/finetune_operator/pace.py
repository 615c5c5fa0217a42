"""How many requests go out in a second: so many at once, and as many a second after that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


class Pace:
    """Gives each caller its turn, in the order in which they came."""

    def __init__(
        self,
        rate: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Let ``burst`` through at once, then ``rate`` a second."""
        self._gap = 1.0 / rate
        self._ahead = (burst - 1) * self._gap
        self._clock = clock
        self._sleep = sleep
        self._next = float("-inf")

    async def turn(self) -> None:
        """Wait until one more may go out."""
        now = self._clock()
        # The n-th of a burst is owed its turn n gaps from now; what is owed early may go early.
        owed = max(now, self._next)
        self._next = owed + self._gap
        wait = owed - self._ahead - now
        if wait > 0:
            await self._sleep(wait)
