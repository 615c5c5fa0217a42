"""What the pods of a job print, read once or followed from attempt to attempt."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from finetune_api.names import LABEL_UID
from finetune_api.problem import Refused
from finetune_cli.cluster.connection import ApiRefusal, Cluster, NoAnswer
from finetune_cli.cluster.jobs import ClusterJob, jobs_path, parse
from finetune_cli.cluster.pods import JobPod, Wanted, choose, from_run, read_pod
from finetune_cli.cluster.watching import Change, Listed, watch

Out = Callable[[str], None]
PAUSE = 1.0
"""Seconds until a log that broke off is read on."""


def pods_path(namespace: str) -> str:
    """Return the path of all pods of a namespace."""
    return f"/api/v1/namespaces/{quote(namespace, safe='')}/pods"


def pods_of(cluster: Cluster, job: ClusterJob) -> list[JobPod]:
    """Return the pods of a job that exist; raises ``ApiRefusal`` and ``NoAnswer``."""
    found = cluster.get(pods_path(cluster.namespace), _selector(job))
    return [pod for body in found.get("items") or () if (pod := read_pod(body)) is not None]


def _selector(job: ClusterJob) -> dict[str, str]:
    return {"labelSelector": f"{LABEL_UID}={job.uid}"}


def _log(
    cluster: Cluster, pod: JobPod, *, follow: bool = False, since: str = "", stamps: bool = False
) -> Iterator[str]:
    query = {"container": pod.container}
    if follow:
        query["follow"] = "true"
    if stamps:
        query["timestamps"] = "true"
    if since:
        query["sinceTime"] = since
    return cluster.lines(f"{pods_path(cluster.namespace)}/{quote(pod.name)}/log", query)


def print_logs(cluster: Cluster, pods: tuple[JobPod, ...], out: Out, err: Out) -> bool:
    """Write what some pods have printed so far, one after the other.

    A log that cannot be read (its node is lost, the pod goes just now) does not hide the others.
    Tells whether there was one that could be read, or none to read yet. Raises ``ApiRefusal``
    where logs may not be read at all.
    """
    read = failed = 0
    for pod in pods:
        start = f"[{pod.name}] " if len(pods) > 1 else ""
        if pod.state == "waiting":
            err(f"{pod.name} has not started: {pod.why}")
            continue
        try:
            for line in _log(cluster, pod):
                out(start + line)
            read += 1
        except (ApiRefusal, NoAnswer) as error:
            if isinstance(error, ApiRefusal) and error.code in (401, 403):
                raise
            failed += 1
            err(f"{pod.name}: its log cannot be read: {error}")
    return read > 0 or not failed


@dataclass(frozen=True)
class _Line:
    pod: JobPod
    text: str


@dataclass(frozen=True)
class _Over:
    pod: JobPod


@dataclass(frozen=True)
class _Said:
    text: str


@dataclass(frozen=True)
class _JobChange:
    change: Change | Listed


class Follower:
    """Writes the logs of a run and of those that come after it, until the job has ended.

    Threads read; this one decides and writes, so that no two lines mix.
    """

    def __init__(self, cluster: Cluster, job: ClusterJob, wanted: Wanted, out: Out, err: Out):
        """Follow what is wanted of a job."""
        self._cluster = cluster
        self._job = job
        self._wanted = wanted
        self._out = out
        self._err = err
        self._queue: queue.Queue[Any] = queue.Queue()
        self._pods: dict[str, JobPod] = {}
        self._gone: set[str] = set()
        self._first: tuple[int, int] | None = None
        self._begun: set[str] = set()
        self._reading: set[str] = set()
        self._waiting: set[str] = set()
        self._ended = job.ended

    def run(self) -> bool:
        """Follow to the end; tells whether anything was there to read."""
        pods = pods_path(self._cluster.namespace)
        self._watch(pods, _selector(self._job), lambda change: change, self._tell)
        if not self._ended:
            fields = {"fieldSelector": f"metadata.name={self._job.name}"}
            # Of an outage both watches hear; one tells of it.
            jobs = jobs_path(self._cluster.namespace)
            self._watch(jobs, fields, _JobChange, lambda text: None)
        listed = False
        while not (listed and self._done()):
            match self._queue.get():
                case _Line(pod, text):
                    self._out(f"[{pod.name}] {text}")
                case _Over(pod):
                    self._reading.discard(pod.uid)
                case _Said(text):
                    self._err(text)
                case _JobChange(change):
                    self._see_job(change)
                case Listed() | Change() as change:
                    listed = listed or isinstance(change, Listed)
                    self._see_pods(change)
                case BaseException() as error:
                    raise error
        return bool(self._begun)

    def _done(self) -> bool:
        """Tell whether nothing more can come."""
        if self._reading or not self._queue.empty():
            return False
        if self._ended:
            return True
        wanted = self._chosen()
        no_more = self._wanted.attempt is not None and bool(wanted)
        return no_more and all(pod.uid in self._begun for pod in wanted)

    def _chosen(self) -> tuple[JobPod, ...]:
        pods = list(self._pods.values())
        if self._first is None:
            newest = choose(pods, self._wanted)
            self._first = newest[0].run if newest else None
        return () if self._first is None else from_run(pods, self._wanted, self._first)

    def _see_pods(self, change: Listed | Change) -> None:
        if isinstance(change, Listed):
            there = [pod for body in change.bodies if (pod := read_pod(body)) is not None]
            self._gone |= self._pods.keys() - {pod.uid for pod in there}
        else:
            pod = read_pod(change.body)
            there = [] if pod is None else [pod]
            if pod is not None and change.kind == "DELETED":
                self._gone.add(pod.uid)
        self._pods |= {pod.uid: pod for pod in there}
        self._begin()

    def _see_job(self, change: Listed | Change) -> None:
        bodies = change.bodies if isinstance(change, Listed) else (change.body,)
        now = next((job for job in map(parse, bodies) if job.uid == self._job.uid), None)
        deleted = isinstance(change, Change) and change.kind == "DELETED"
        if (now is None or deleted or now.ended) and not self._ended:
            # The watch of the pods may be behind that of the job.
            with suppress(NoAnswer):
                self._pods |= {pod.uid: pod for pod in pods_of(self._cluster, self._job)}
            self._begin()
            self._ended = True

    def _begin(self) -> None:
        """Read the logs of pods that have started since."""
        for pod in self._chosen():
            if pod.uid in self._begun or pod.uid in self._gone:
                continue
            if pod.state == "waiting":
                if pod.uid not in self._waiting:
                    self._waiting.add(pod.uid)
                    self._err(f"{pod.name} has not started yet: {pod.why}")
                continue
            self._begun.add(pod.uid)
            self._reading.add(pod.uid)
            _start(self._read, pod)

    def _read(self, pod: JobPod) -> None:
        def ended() -> bool:
            return pod.uid in self._gone or self._pods[pod.uid].state == "ended"

        try:
            for text in read_on(self._cluster, pod, ended):
                self._queue.put(_Line(pod, text))
            self._queue.put(_Over(pod))
        except (ApiRefusal, Refused) as error:
            self._queue.put(error)

    def _tell(self, text: str) -> None:
        self._queue.put(_Said(text))

    def _watch(
        self,
        path: str,
        query: dict[str, str],
        made: Callable[[Change | Listed], object],
        say: Callable[[str], None],
    ) -> None:
        def run() -> None:
            try:
                for change in watch(self._cluster, path, query, say):
                    self._queue.put(made(change))
            except (ApiRefusal, NoAnswer, Refused) as error:
                self._queue.put(error)

        _start(run)


def _start(run: Callable[..., None], *arguments: object) -> None:
    """Run in a thread that does not keep the process alive."""
    threading.Thread(target=run, args=arguments, daemon=True).start()


def read_on(
    cluster: Cluster,
    pod: JobPod,
    ended: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Yield the lines of a pod's log until it has ended, none twice, whatever breaks in between.

    Raises ``ApiRefusal`` where the log may not be read.
    """
    last = ""
    while True:
        over = ended()  # before reading: what it printed until then is there
        try:
            for line in _log(cluster, pod, follow=True, since=last, stamps=True):
                stamp, _, text = line.partition(" ")
                if stamp > last:
                    last = stamp
                    yield text
        except ApiRefusal as error:
            if error.code == 404:
                return
            if error.code in (401, 403):
                raise
        except NoAnswer:
            over = False
        if over:
            return
        sleep(PAUSE)
