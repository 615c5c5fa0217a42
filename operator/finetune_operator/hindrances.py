"""What the cluster says of pods that do not come to run: Events, which are costly to read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from finetune_operator.kube import EVENTS, Kube, Object
from finetune_operator.waiting import tells, trimmed

OTHERS = ("FailedScheduling", "BackOff", "Unhealthy")
"""The commonest warnings of a namespace. What they tell of a pod stands in the pod too."""
SHARE = 10.0
"""A list is used again for so many times as long as it took: at most a tenth of one request."""
LONGEST = 5.0
"""Seconds after which one is read again however long it took."""


class Hindrances:
    """Warnings of a namespace, read once for all jobs that wait at the same time.

    The API server keeps Events in no index and in no memory: it reads all of a namespace from its
    store for every question, whatever it is about.
    """

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is read yet."""
        self._kube = kube
        self._clock = clock
        self._asked: dict[str, asyncio.Task[list[Object]]] = {}
        self._found: dict[str, tuple[float, list[Object]]] = {}

    async def of(self, namespace: str) -> list[Object]:
        """Return the warnings of a namespace, or those that were read a moment ago."""
        until, found = self._found.get(namespace, (float("-inf"), []))
        if self._clock() < until:
            return found
        task = self._asked.get(namespace)
        if task is None:
            task = asyncio.create_task(self._read(namespace))
            self._asked[namespace] = task
            task.add_done_callback(lambda _: self._asked.pop(namespace, None))
        # Who is cancelled must not take the list from the others that wait for it.
        return await asyncio.shield(task)

    async def _read(self, namespace: str) -> list[Object]:
        began = self._clock()
        fields = ",".join(("type=Warning", *(f"reason!={one}" for one in OTHERS)))
        read = await self._kube.list(EVENTS, namespace, fields=fields)
        # Whoever may write Events must not decide how much memory that takes.
        found = [trimmed(event) for event in read if tells(event)]
        now = self._clock()
        self._found = {name: one for name, one in self._found.items() if one[0] > now}
        self._found[namespace] = (now + min(LONGEST, SHARE * (now - began)), found)
        return found
