"""Which job is looked at next: each at most once at a time, not too often, not all at once."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

SHORTEST = 0.5
LONGEST = 120.0
SPARE = 64
"""Entries of keys that were dropped that a heap may hold in any case."""


class Key(NamedTuple):
    """A job, by where it lives."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """As people write it."""
        return f"{self.namespace}/{self.name}"


class Due:
    """Keys by the earliest time that was asked for; the first is found without looking at all."""

    def __init__(self) -> None:
        """Begin empty."""
        self._times: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def __len__(self) -> int:
        """How many there are."""
        return len(self._times)

    def items(self) -> Iterable[tuple[Key, float]]:
        """Keys and their times."""
        return self._times.items()

    def add(self, key: Key, at: float) -> None:
        """Keep a time, if it is earlier than the one that is there."""
        if key in self._times and self._times[key] <= at:
            return
        self._times[key] = at
        heapq.heappush(self._heap, (at, key))
        if len(self._heap) > 2 * len(self._times) + SPARE:
            # Of a key that was dropped the entry stays until its time, which may be days ahead.
            self._heap = [(at, key) for key, at in self._times.items()]
            heapq.heapify(self._heap)

    def drop(self, key: Key) -> None:
        """Forget a key; its entries of the heap are passed over when they come up."""
        self._times.pop(key, None)

    def first(self, now: float, active: Container[Key]) -> Key | None:
        """Return the key that is due longest and that nobody works on."""
        held: list[tuple[float, Key]] = []
        found: Key | None = None
        while self._heap and self._heap[0][0] <= now:
            at, key = self._heap[0]
            if self._times.get(key) == at and key not in active:
                found = key
                break
            heapq.heappop(self._heap)
            if self._times.get(key) == at:
                held.append((at, key))
        for entry in held:
            heapq.heappush(self._heap, entry)
        return found


@dataclass
class Schedule:
    """The queue without a loop and without a clock: every method is told the time.

    A key is due at one time only, the earliest that was asked for. While it is worked on it is not
    given out again; what comes in the meantime is kept. A key with patience lets those go first
    that have none, until its patience is over. ``rate`` keys a second are given out, with up to
    ``burst`` at once.
    """

    rate: float = 50.0
    burst: int = 100
    _due: Due = field(default_factory=Due)
    """When each may be given out."""
    _pressing: Due = field(default_factory=Due)
    """When each goes before those that may wait."""
    _active: set[Key] = field(default_factory=set)
    _failures: dict[Key, int] = field(default_factory=dict)
    _tokens: float | None = None
    _filled: float = 0.0

    def __len__(self) -> int:
        """How many wait, whether due or not."""
        return len(self._due)

    @property
    def active(self) -> int:
        """How many are worked on."""
        return len(self._active)

    def ready(self, now: float) -> int:
        """How many are due and nobody works on."""
        return sum(1 for key, at in self._due.items() if at <= now and key not in self._active)

    def add(self, key: Key, now: float, delay: float = 0.0, patience: float = 0.0) -> None:
        """Ask for a look after a delay; a time that was asked for before stays if it is earlier."""
        at = now + max(0.0, delay)
        self._due.add(key, at)
        self._pressing.add(key, at + patience)

    def fail(self, key: Key, now: float, at_least: float = 0.0) -> float:
        """Ask for another look after a failure, each time twice as late; returns the delay."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay = max(at_least, min(LONGEST, SHORTEST * 2.0 ** min(count, 16)))
        self.add(key, now, delay)
        return delay

    def succeed(self, key: Key) -> None:
        """Forget the failures of a key."""
        self._failures.pop(key, None)

    def take(self, now: float) -> Key | None:
        """Give out the key that is due longest, of those that press first.

        None where none is due, or the rate is used up.
        """
        if self._available(now) < 1:
            return None
        found = self._pressing.first(now, self._active)
        if found is None:
            found = self._due.first(now, self._active)
        if found is None:
            return None
        self._due.drop(found)
        self._pressing.drop(found)
        self._active.add(found)
        assert self._tokens is not None
        self._tokens -= 1
        return found

    def done(self, key: Key) -> None:
        """Say that the look is over."""
        self._active.discard(key)

    def wait(self, now: float) -> float | None:
        """Return the seconds until a take may succeed; None: not before something is added."""
        times = [at for key, at in self._due.items() if key not in self._active]
        if not times:
            return None
        missing = max(0.0, 1.0 - self._available(now))
        return max(0.0, min(times) - now, missing / self.rate)

    def _available(self, now: float) -> float:
        if self._tokens is None:
            self._tokens, self._filled = float(self.burst), now
        passed = max(0.0, now - self._filled)
        self._tokens = min(float(self.burst), self._tokens + passed * self.rate)
        self._filled = now
        return self._tokens


class Queue:
    """A schedule that coroutines wait on."""

    def __init__(
        self, schedule: Schedule | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin empty."""
        self._schedule = schedule or Schedule()
        self._clock = clock
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """How many wait, whether due or not."""
        return len(self._schedule)

    @property
    def depth(self) -> int:
        """How many are due and nobody works on."""
        return self._schedule.ready(self._clock())

    @property
    def active(self) -> int:
        """How many are worked on."""
        return self._schedule.active

    def add(self, key: Key, delay: float = 0.0, patience: float = 0.0) -> None:
        """Ask for a look after a delay, and so much later at most while others press."""
        self._schedule.add(key, self._clock(), delay, patience)
        self._changed.set()

    def fail(self, key: Key, at_least: float = 0.0) -> float:
        """Ask for another look after a failure; returns the delay in seconds."""
        delay = self._schedule.fail(key, self._clock(), at_least)
        self._changed.set()
        return delay

    def succeed(self, key: Key) -> None:
        """Forget the failures of a key."""
        self._schedule.succeed(key)

    async def take(self) -> Key:
        """Wait for a key that is due; every take needs its ``done``."""
        while True:
            key = self._schedule.take(self._clock())
            if key is not None:
                return key
            self._changed.clear()
            wait = self._schedule.wait(self._clock())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def done(self, key: Key) -> None:
        """Say that the look is over."""
        self._schedule.done(key)
        self._changed.set()
