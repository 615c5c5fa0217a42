"""A kind that the cluster may not have: it is watched for as long as the API server serves it.

What is served is asked of discovery, which any service account may read; a watch of the
definitions themselves would be a right on the whole cluster. The watch is a second run of the
library, in a thread with an event loop of its own: it ends with an error when the kind goes away,
and it ends every task of its loop with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

import kopf

from finetune_operator.kube import Kube, KubeError, Resource

log = logging.getLogger(__name__)

END = 10.0
"""Seconds that the library has to end its streams."""


@dataclass(frozen=True)
class OptionalWatch:
    """Watches one kind while it is served; whatever ends the watch ends nothing else."""

    kube: Kube
    resource: Resource
    registry: Callable[[], kopf.OperatorRegistry]
    """Makes the handlers; they are called in the thread of the watch."""
    settings: Callable[[], kopf.OperatorSettings]
    namespaces: tuple[str, ...]
    """None: all of them."""
    changed: Callable[[], None]
    """Called when the kind has come or gone."""
    every: float
    """Seconds between two questions whether it is served."""

    async def run(self) -> None:
        """Ask and watch for ever."""
        known: bool | None = None
        while True:
            served = await self._served(known)
            if known is not None and served != known:
                log.info("%s: %s", self.resource.plural, "served now" if served else "gone")
                self.changed()
            known = served
            if served:
                await self._watch()
                if not await self._served(known):
                    continue
            await asyncio.sleep(self._pause())

    async def _watch(self) -> None:
        """Watch until the kind is gone, or until the watch has ended by itself.

        The latter is the first sign of the former: who asks at once keeps the looks at jobs from
        listing a kind that is not there.
        """
        run = _Run(self)
        try:
            while not run.ended.is_set() and await self._served(True):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await run.ended.wait()
        finally:
            await run.stop()

    def _pause(self) -> float:
        return self.every * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load

    async def _served(self, known: bool | None) -> bool:
        """Ask; without an answer nothing has changed."""
        try:
            return await self.kube.serves(self.resource, fresh=0.0)
        except KubeError as error:
            log.warning("it cannot be asked whether %s is served: %s", self.resource.plural, error)
            return bool(known)


class _Run:
    """One run of the library, in its own thread."""

    def __init__(self, watch: OptionalWatch) -> None:
        self._watch = watch
        self.ended = asyncio.Event()
        self._home = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(
            target=self._work, name=f"watch of {watch.resource.plural}", daemon=True
        )
        self._thread.start()

    async def stop(self) -> None:
        """End the streams; a thread that does not end by then goes with the process."""
        with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join, END)

    def _work(self) -> None:
        """Run the library; whatever ends it, who waits for its end is told."""
        try:
            self._go_on()
        except (Exception, asyncio.CancelledError, SystemExit) as error:
            plural = self._watch.resource.plural
            log.warning("the watch of %s has ended: %r", plural, error)
        finally:
            with contextlib.suppress(RuntimeError):  # the process is ending
                self._home.call_soon_threadsafe(self.ended.set)

    def _go_on(self) -> None:
        watch = self._watch
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            settings = watch.settings()
            # The library would kill the process for a thread that is slow to end.
            settings.process.ultimate_exiting_timeout = None
            runner.run(
                kopf.operator(
                    registry=watch.registry(),
                    settings=settings,
                    standalone=True,
                    clusterwide=not watch.namespaces,
                    namespaces=watch.namespaces,
                    stop_flag=self._stop,
                )
            )
