"""``python -m finetune_operator.main``: the operator as a process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Coroutine
from typing import Any

import kopf

from finetune_operator import hearing, metrics, probes
from finetune_operator.acceptance import Acceptance, Profiles
from finetune_operator.events import Recorder
from finetune_operator.job_list import PATIENCE, JobList
from finetune_operator.kube import PYTORCH_JOBS, Conflict, Kube, KubeError, Unavailable
from finetune_operator.last_seen import LastSeen
from finetune_operator.log_lines import ATTEMPT, JOB, set_up
from finetune_operator.observe import Observer
from finetune_operator.optional_watch import OptionalWatch
from finetune_operator.pace import Pace
from finetune_operator.progress import Puller
from finetune_operator.progress_log import LogReader
from finetune_operator.queue import Key, Queue, Schedule
from finetune_operator.settings import Settings, instance, kopf_settings, read_settings
from finetune_operator.watch import ECHO, children_registry, make_registry
from finetune_operator.worker import Worker

log = logging.getLogger("finetune_operator")

CROWDED = 5.0
"""How much longer changes that are no news by themselves are gathered while there is much to do."""
EVENTS = 40.0
"""Requests that may go out for each Event while there is much to do."""
AGAIN = 10.0
"""Seconds after which what is asked now and then is asked again that had no answer."""
END = 5.0
"""Seconds that parts have to end."""
UNSERVED = 2.0
"""Seconds after which it is asked again whether the definitions are there."""
DEEPEST = 30_000
"""Levels that Python may nest. The API server takes objects of 10,000 levels, a tenth of which Python
reads by itself, and each of them is in the list of all jobs; 8 MiB of stack hold 40,000 levels."""


class Operator:
    """Everything that runs, until one part of it ends."""

    def __init__(self, settings: Settings) -> None:
        """Put the parts together; nothing runs yet."""
        self.settings = settings
        self.queue = Queue(
            Schedule(
                rate=settings.looks_per_second, burst=max(1, int(2 * settings.looks_per_second))
            )
        )
        rate = settings.requests_per_second
        self.kube = Kube(settings.connections, Pace(rate, max(1, int(2 * rate))))
        self.profiles = Profiles(self.kube)
        acceptance = Acceptance(self.kube, self.profiles, settings.trainer_image)
        self.seen = LastSeen()
        self.puller = Puller(
            lambda key: self.queue.add(key, 0.0, PATIENCE),
            every=settings.progress_seconds,
            rate=settings.progress_per_second,
            instead=LogReader(self.kube).read if settings.progress_from_logs else None,
        )
        self.worker = Worker(
            kube=self.kube,
            acceptance=acceptance,
            observer=Observer(self.kube, acceptance, self.seen, self.puller),
            puller=self.puller,
            recorder=Recorder(self.kube, instance(), busy=self._is_crowded, held=EVENTS / rate),
            progress_seconds=settings.progress_seconds,
            unreachable_seconds=settings.unreachable_seconds,
            restarts_at_once=settings.restarts_at_once,
        )
        self.jobs = JobList(
            self.kube, self.worker, self.queue, settings.namespaces, settings.relist_seconds
        )
        self.list_now = asyncio.Event()
        self.health = probes.Health(relist_every=settings.relist_seconds)
        metrics.follow(
            lambda: float(self.queue.depth),
            lambda: float(len(self.queue)),
            lambda: self.health.relist_age,
            lambda: float(not self.health.unready()),
        )

    async def run(self) -> int:
        """Run until told to end (returns 0), or until a part ends that never should (returns 1)."""
        told = asyncio.Event()
        _listen(told)
        settings = self.settings
        server = await probes.serve(self.health, settings.probe_address, settings.probe_port)
        started, stop = asyncio.Event(), asyncio.Event()
        parts: dict[asyncio.Task[None], str] = {}

        def part(name: str, work: Coroutine[Any, Any, None]) -> None:
            parts[asyncio.create_task(work, name=name)] = name

        part("the watch", self._watch(started, stop, told))
        part("the look for PyTorchJobs", self._pytorch_watch().run())
        part("the list of jobs", self._relist(started))
        part("the question what can be watched", self._listen_in(started))
        part("the writing of events", self.worker.recorder.run())
        for number in range(settings.workers):
            part(f"worker {number}", self._work(number))
        end = asyncio.create_task(told.wait())
        try:
            done, _ = await asyncio.wait({end, *parts}, return_when=asyncio.FIRST_COMPLETED)
            return 0 if end in done else await self._fallen(done, parts)
        finally:
            stop.set()
            for task in (end, *parts):
                task.cancel()
            await asyncio.wait({end, *parts}, timeout=END)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await self.worker.recorder.flush()
            await self.puller.close()
            await self.kube.close()
            await server.cleanup()

    async def _fallen(
        self, done: set[asyncio.Task[Any]], parts: dict[asyncio.Task[None], str]
    ) -> int:
        """Say which part has ended, and why."""
        if all(task.cancelled() for task in done):
            # The library, where it breaks, ends every task of the loop, and itself at last.
            done, _ = await asyncio.wait(parts, timeout=END, return_when=asyncio.FIRST_EXCEPTION)
        errors = {
            task: None if task.cancelled() else task.exception() for task in done & set(parts)
        }
        broken = {task: error for task, error in errors.items() if error is not None}
        for task, error in (broken or errors).items():
            self.health.stopped = parts[task]
            log.error("%s has stopped; the process ends", parts[task], exc_info=error)
        return 1

    def _is_crowded(self) -> bool:
        """Tell whether many looks go on at the same time, a quarter of those that can."""
        return self.queue.active > max(2, self.settings.workers // 4)

    def _enqueue(self, key: Key, delay: float) -> None:
        """Ask for a look. What may wait waits longer, and gathers more, while there is much to do.

        New jobs and pods that have ended go before it, as they do before progress, and before a
        look that the one before has asked for: with few requests a second, what is started is
        started before it is said how the others do.
        """
        patience = PATIENCE if delay else 0.0
        self.queue.add(key, delay * CROWDED if self._is_crowded() else delay, patience)

    def _echoed(self, key: Key, version: str) -> None:
        """Look at a job whose status has changed, unless we wrote it: who wrote it has looked.

        The watch may tell of it before the answer has come that says which version it is.
        """
        wait = ECHO * CROWDED if self._is_crowded() else ECHO
        asyncio.get_running_loop().call_later(wait, self._look_unless_own, key, version)

    def _look_unless_own(self, key: Key, version: str) -> None:
        if not self.worker.is_own(key, version):
            self.queue.add(key)

    async def _watch(
        self, started: asyncio.Event, stop: asyncio.Event, told: asyncio.Event
    ) -> None:
        names = self.settings.namespaces
        await self._until_served()
        registry = make_registry(
            enqueue=self._enqueue,
            profile_changed=self._profile_changed,
            seen=self.seen,
            known=self.worker.known,
            echoed=self._echoed,
        )
        watching = asyncio.create_task(
            kopf.operator(
                registry=registry,
                settings=kopf_settings(self.settings.workers),
                standalone=True,
                clusterwide=not names,
                namespaces=names,
                ready_flag=started,
                stop_flag=stop,
            )
        )
        begun = asyncio.create_task(started.wait())
        try:
            await asyncio.wait({watching, begun}, return_when=asyncio.FIRST_COMPLETED)
            # The library has taken the signals for itself; all of the parts end together.
            _listen(told)
            await watching
        finally:
            begun.cancel()
            watching.cancel()

    async def _until_served(self) -> None:
        """Wait for the definitions: the library looks for kinds once, at its start."""
        failed = "it cannot be asked what is served"
        while not await self._tried(failed, self._ask_served()) or self.health.unserved:
            await asyncio.sleep(UNSERVED)

    async def _ask_served(self) -> None:
        missing = ", ".join(await hearing.unserved(self.kube))
        if missing and missing != self.health.unserved:
            log.warning("waiting until the API server serves %s", missing)
        self.health.unserved = missing

    def _pytorch_watch(self) -> OptionalWatch:
        """Return the watch of PyTorchJobs, which may be installed and removed at any time."""
        loop = asyncio.get_running_loop()

        def enqueue(key: Key, delay: float) -> None:
            with contextlib.suppress(RuntimeError):  # the process is ending
                loop.call_soon_threadsafe(self._enqueue, key, delay)

        def heard(uid: str, version: str) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self.seen.hear, uid, version)

        return OptionalWatch(
            kube=self.kube,
            resource=PYTORCH_JOBS,
            registry=lambda: children_registry(PYTORCH_JOBS, enqueue, heard),
            settings=lambda: kopf_settings(self.settings.workers),
            namespaces=self.settings.namespaces,
            # Jobs wait for the kind, or have lost their child with it.
            changed=self.list_now.set,
            every=self.settings.unreachable_seconds,
        )

    async def _relist(self, started: asyncio.Event) -> None:
        """List all jobs now and then."""
        await started.wait()
        while True:
            done = await self._tried("the jobs could not be listed", self.jobs.read())
            self.health.last_relist = self.jobs.last
            wait = self.settings.relist_seconds
            wait = wait if done else min(AGAIN, wait)
            wait *= random.uniform(0.9, 1.1)  # noqa: S311 - spreads load
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self.list_now.wait()
                self.jobs.anew()
            self.list_now.clear()

    async def _listen_in(self, started: asyncio.Event) -> None:
        """Ask now and then whether the watches can hear anything."""
        await started.wait()
        while True:
            done = await self._tried("it cannot be asked what can be watched", self._ask_deaf())
            wait = self.settings.relist_seconds
            wait = wait if done and not self.health.deaf else min(AGAIN, wait)
            await asyncio.sleep(wait * random.uniform(0.9, 1.1))  # noqa: S311 - spreads load

    async def _ask_deaf(self) -> None:
        text = await hearing.deaf(self.kube, self.settings.namespaces)
        if text and text != self.health.deaf:
            log.error("%s", text)
        self.health.deaf, self.health.watching = text, True

    async def _tried(self, failed: str, work: Coroutine[Any, Any, None]) -> bool:
        """Do what is done again in any case; tell whether it was done now."""
        try:
            await work
        except KubeError as error:
            metrics.API_ERRORS.labels(str(error.code)).inc()
            log.warning("%s: %s", failed, error)
        except Exception:
            # What one object does to a list must not end the process for all others.
            log.exception("%s", failed)
        else:
            return True
        return False

    def _profile_changed(self) -> None:
        self.profiles.changed()
        for key in tuple(self.worker.unaccepted):
            self.queue.add(key)

    async def _work(self, number: int) -> None:
        while True:
            key = await self.queue.take()
            self.health.looking_since[number] = time.monotonic()
            JOB.set(str(key))
            ATTEMPT.set(0)
            try:
                await self._look(key)
            finally:
                JOB.set("")
                ATTEMPT.set(0)
                self.health.looking_since.pop(number, None)
                self.queue.done(key)

    async def _look(self, key: Key) -> None:
        """Look once. A job that cannot be looked at hurts nobody but itself."""
        began = time.monotonic()
        result = "done"
        try:
            wait = await self.worker.look(key)
            self.queue.succeed(key)
            if wait is not None:
                self.queue.add(key, wait, PATIENCE)
        except Conflict as error:
            result = "conflict"
            metrics.API_ERRORS.labels("409").inc()
            log.debug("it has changed since it was read: %s", error)
            self.queue.fail(key)
        except KubeError as error:
            result = "error"
            metrics.API_ERRORS.labels(str(error.code)).inc()
            metrics.RETRIES.inc()
            after = error.retry_after if isinstance(error, Unavailable) else None
            wait = self.queue.fail(key, after or 0.0)
            log.warning("%s; again in %.1f s", error, wait)
        except Exception:
            result = "failed"
            metrics.RETRIES.inc()
            wait = self.queue.fail(key)
            log.exception("the look failed; again in %.1f s", wait)
        metrics.LOOKS.labels(result).inc()
        metrics.LOOK_SECONDS.observe(time.monotonic() - began)


def _listen(told: asyncio.Event) -> None:
    """Let SIGTERM and SIGINT end the process in order."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)


def main() -> int:
    """Run the operator; the exit code is 1 where a part of it has stopped by itself."""
    sys.setrecursionlimit(DEEPEST)
    settings = read_settings(sys.argv[1:], os.environ)
    set_up(settings.log_level)
    log.info("starting with %s", settings.to_json())
    return asyncio.run(Operator(settings).run())


if __name__ == "__main__":
    sys.exit(main())
