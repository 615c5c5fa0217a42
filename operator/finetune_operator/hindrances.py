"""What the cluster says of pods that do not come to run: Events, which are costly to read."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import aclosing

from finetune_operator.kube import EVENTS, Kube, Object
from finetune_operator.waiting import tells, trimmed

OTHERS = ("FailedScheduling", "BackOff", "Unhealthy")
"""The commonest warnings of a namespace. What they tell of a pod stands in the pod too."""
SHARE = 10.0
"""A list is used again for so many times as long as it took: at most a tenth of one request."""
LONGEST = 5.0
"""Seconds after which one is read again however long it took."""
MOST_READ = 5_000
"""Events of a namespace; whoever may write them must not decide how much is read."""
MOST_KEPT = 2_000
"""Of those that were read: the last in the order of their names."""
WORDS = 4 * 1024
"""Characters that are kept of each text of an Event."""


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
        read = 0
        kept: deque[Object] = deque(maxlen=MOST_KEPT)
        async with aclosing(self._kube.pages(EVENTS, namespace, fields=fields)) as pages:
            async for page in pages:
                read += len(page.items)
                # One of a list that was begun again does no harm twice: the newest counts.
                kept.extend(_cut(event) for event in page.items if tells(event))
                del page
                if read >= MOST_READ:
                    break
        found = list(kept)
        now = self._clock()
        self._found = {name: one for name, one in self._found.items() if one[0] > now}
        self._found[namespace] = (now + min(LONGEST, SHARE * (now - began)), found)
        return found


def _cut(event: Object) -> Object:
    """Return what is read of an Event, and of its texts only so much."""
    kept = trimmed(event)
    about = {name: uid[:WORDS] for name, uid in kept["involvedObject"].items()}
    words = {name: it[:WORDS] for name, it in kept.items() if isinstance(it, str)}
    return {**words, "involvedObject": about}
