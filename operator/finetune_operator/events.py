"""Events: one for each change that a user would want to hear of, and never the same one twice."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from finetune_api.status import Condition, JobStatus
from finetune_operator.kube import FINETUNE_JOBS, Conflict, KubeError, Object

log = logging.getLogger(__name__)

REMEMBERED = 4096
MOST_WAITING = 4096
"""Events that have not been written yet; the oldest are left out."""
_BAD_WHEN_FALSE = ("Accepted", "Prepared", "Succeeded")
_BAD_WHEN_TRUE = ("Failed", "Recovering")
_SAID_BY_OTHERS = ("Finished",)


class Creator(Protocol):
    """The part of the client that is needed."""

    async def create(self, body: Object) -> Object:
        """Create an object."""
        ...


def transitions(before: JobStatus, after: JobStatus) -> list[tuple[str, str, str]]:
    """Return (type, reason, message) for every condition whose status or reason has changed."""
    old = {one.type: (one.status, one.reason) for one in before.conditions}
    found = []
    for one in after.conditions:
        if old.get(one.type) == (one.status, one.reason) or one.type in _SAID_BY_OTHERS:
            continue
        if one.type not in old and one.status == "False" and not one.message:
            continue
        if one.status == "False" and one.type not in _BAD_WHEN_FALSE and not one.message:
            continue
        found.append((_kind(one), one.reason, one.message or f"{one.type} is {one.status}"))
    return found


def _kind(one: Condition) -> str:
    bad = one.type in (_BAD_WHEN_TRUE if one.status == "True" else _BAD_WHEN_FALSE)
    waits = one.reason in ("Pending", "Preparing", "Succeeded")
    return "Warning" if bad and not waits else "Normal"


class Recorder:
    """Writes Events under names that follow from what they say: a second one is refused.

    While ``run`` runs they wait for their turn, so that looks at jobs do not wait for them.
    """

    def __init__(
        self,
        kube: Creator,
        instance: str,
        rate: float = 50.0,
        busy: Callable[[], bool] = lambda: False,
        held: float = 0.2,
    ) -> None:
        """Write through this client, as this instance of the operator, so many a second.

        While there is much to do, only one in ``held`` seconds: what happens comes before its news,
        unless so many wait that some would be lost.
        """
        self._kube = kube
        self._instance = instance
        self._pause = 1.0 / rate
        self._busy = busy
        self._held = held
        self._said: OrderedDict[str, None] = OrderedDict()
        self._waiting: asyncio.Queue[Object] | None = None

    async def run(self) -> None:
        """Write what is recorded, until cancelled."""
        self._waiting = asyncio.Queue(MOST_WAITING)
        while True:
            await self._create(await self._waiting.get())
            held = self._busy() and self._waiting.qsize() < MOST_WAITING // 8
            await asyncio.sleep(self._held if held else self._pause)

    async def flush(self) -> None:
        """Write what still waits, without a pause."""
        waiting, self._waiting = self._waiting, None
        while waiting is not None and not waiting.empty():
            await self._create(waiting.get_nowait())

    async def record(self, job: Mapping[str, Any], type_: str, reason: str, message: str) -> None:
        """Write one Event about a job; what goes wrong is logged and has no consequence."""
        metadata = job["metadata"]
        mark = f"{metadata['uid']}/{type_}/{reason}/{message}"
        name = f"{metadata['name']}.{hashlib.sha256(mark.encode()).hexdigest()[:16]}"
        if name in self._said:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body: Object = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": FINETUNE_JOBS.api_version,
                "kind": FINETUNE_JOBS.kind,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": type_,
            "reason": reason[:128],
            "message": message[:1024],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": "finetune-operator"},
            "reportingComponent": "finetune-operator",
            "reportingInstance": self._instance,
        }
        self._said[name] = None
        while len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        if self._waiting is None:
            await self._create(body)
            return
        if self._waiting.full():
            log.warning("an event is left out, %d wait already", MOST_WAITING)
            self._forget(self._waiting.get_nowait())
        self._waiting.put_nowait(body)

    async def _create(self, body: Object) -> None:
        try:
            await self._kube.create(body)
        except Conflict:
            pass
        except KubeError as error:
            log.warning("an event could not be written: %s", error)
            self._forget(body)

    def _forget(self, body: Object) -> None:
        """Let an event that was not written be said again."""
        self._said.pop(body["metadata"]["name"], None)
