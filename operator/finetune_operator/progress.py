"""Progress of running jobs, pulled from rank 0: a convenience that nothing is decided by."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
from pydantic import ValidationError

from finetune_api.names import PROGRESS_PORT
from finetune_api.reports import Progress
from finetune_operator import metrics
from finetune_operator.endings import harmless
from finetune_operator.queue import Key

log = logging.getLogger(__name__)

LIMIT = 64 * 1024
TIMEOUT = 3.0
REMEMBERED = 16_384


@dataclass(frozen=True)
class Source:
    """Where the progress of a job's attempt is read."""

    key: Key
    job_uid: str
    attempt: int
    address: str
    """Of rank 0's pod."""
    pod: str = ""
    container: str = ""


def accepted(body: bytes, source: Source, before: Progress | None) -> Progress | None:
    """Return what a pod said, if it can be believed.

    It must be small, valid, of this job and attempt, and not of an older claim than was seen. The
    text comes out of a pod: anything may stand in it.
    """
    if len(body) > LIMIT:
        return None
    try:
        found = Progress.model_validate(harmless(json.loads(body)))
    except (ValueError, ValidationError, RecursionError):
        return None
    if found.job_uid != source.job_uid or found.attempt != source.attempt:
        return None
    if before is not None and before.attempt == found.attempt and found.claim < before.claim:
        return None
    return found


def is_news(before: Progress | None, after: Progress) -> bool:
    """Tell whether a step, a claim or a checkpoint has come since; a new ETA alone is no news."""
    if before is None:
        return True
    return (before.attempt, before.claim, before.step, before.checkpoint) != (
        after.attempt,
        after.claim,
        after.step,
        after.checkpoint,
    )


class Puller:
    """Reads each job once in an interval while its pod answers, and all of them at a bounded rate."""

    def __init__(
        self,
        found: Callable[[Key], None],
        *,
        every: float = 60.0,
        rate: float = 20.0,
        port: int = PROGRESS_PORT,
        clock: Callable[[], float] = time.monotonic,
        instead: Callable[[Source, Progress | None], Awaitable[Progress | None]] | None = None,
    ) -> None:
        """Call ``found`` when a job has something new to tell.

        ``instead`` is asked where a pod cannot be reached, with what is known of the job so far.
        """
        self._found = found
        self._every = every
        self._gap = 1.0 / rate
        self._port = port
        self._clock = clock
        self._instead = instead
        self._next = 0.0
        self._asked: OrderedDict[str, float] = OrderedDict()
        self._sources: dict[str, Source] = {}
        self._again: dict[str, asyncio.TimerHandle] = {}
        self._known: OrderedDict[str, Progress] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    def known(self, job_uid: str) -> Progress | None:
        """Return the newest that was read of a job."""
        return self._known.get(job_uid)

    def want(self, source: Source) -> None:
        """Read the progress of a running job soon, unless it was read lately; then once an interval.

        That goes on, whether the pod answers or not, until the job is left or forgotten.
        """
        now = self._clock()
        self._sources[source.job_uid] = source
        if now - self._asked.get(source.job_uid, float("-inf")) < self._every:
            return
        at = max(now, self._next)
        self._asked[source.job_uid] = at
        self._asked.move_to_end(source.job_uid)
        while len(self._asked) > REMEMBERED:
            self._drop(next(iter(self._asked)))
        self._next = at + self._gap
        task = asyncio.ensure_future(self._pull(source, at - now))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def leave(self, job_uid: str) -> None:
        """Ask no more, because nothing runs now; what is known stays."""
        self._drop(job_uid)

    def forget(self, job_uid: str) -> None:
        """Drop what is known of a job that is gone, or that has ended."""
        self._known.pop(job_uid, None)
        self._drop(job_uid)

    def disbelieve(self, job_uid: str) -> None:
        """Drop what is known of a job, and go on asking at the same pace."""
        self._known.pop(job_uid, None)

    def _drop(self, job_uid: str) -> None:
        self._asked.pop(job_uid, None)
        self._sources.pop(job_uid, None)
        timer = self._again.pop(job_uid, None)
        if timer is not None:
            timer.cancel()

    def _arm(self, job_uid: str) -> None:
        """Ask again after an interval, unless the job was let go of in the meantime."""
        if job_uid not in self._sources:
            return
        timer = self._again.pop(job_uid, None)
        if timer is not None:
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._again[job_uid] = loop.call_later(self._every, self._once_more, job_uid)

    def _once_more(self, job_uid: str) -> None:
        self._again.pop(job_uid, None)
        source = self._sources.get(job_uid)
        if source is not None:
            self.want(source)

    async def close(self) -> None:
        """End what is under way."""
        for timer in self._again.values():
            timer.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _pull(self, source: Source, delay: float) -> None:
        await asyncio.sleep(delay)
        self._arm(source.job_uid)
        body = await self._read(source)
        before = self._known.get(source.job_uid)
        if body is None:
            found = await self._instead(source, before) if self._instead else None
            metrics.PULLS.labels("unreachable" if found is None else "log").inc()
            if found is None:
                return
        else:
            found = accepted(body, source, before)
            metrics.PULLS.labels("refused" if found is None else "read").inc()
            if found is None:
                log.warning("what %s says of its progress is not valid", source.key)
                return
        if not is_news(before, found):
            return
        self._known[source.job_uid] = found
        self._known.move_to_end(source.job_uid)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        self._found(source.key)

    async def _read(self, source: Source) -> bytes | None:
        if self._session is None:
            # Straight to the pod: neither proxies nor redirects lead to one.
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=TIMEOUT),
                connector=aiohttp.TCPConnector(limit=64, force_close=True),
                trust_env=False,
            )
        host = f"[{source.address}]" if ":" in source.address else source.address
        url = f"http://{host}:{self._port}/progress"
        try:
            async with self._session.get(url, allow_redirects=False) as answer:
                if answer.status != 200:
                    return None
                body = b""
                async for chunk in answer.content.iter_chunked(16 * 1024):
                    body += chunk
                    if len(body) > LIMIT:
                        break
                return body
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
