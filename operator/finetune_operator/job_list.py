"""The list of all jobs: whatever a watch may miss, it is not missed for long."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_operator import metrics
from finetune_operator.job_counts import JobCounts, Kind, kind_of
from finetune_operator.kube import (
    FINETUNE_JOBS,
    Forbidden,
    Kube,
    KubeError,
    NotFound,
    Unavailable,
)
from finetune_operator.queue import Key, Queue
from finetune_operator.worker import Worker

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds for which what may wait lets new jobs and pods that have ended go first."""
SPREAD = 30.0
"""Seconds at most over which the looks that follow a list are spread."""


@dataclass
class JobList:
    """Lists jobs, and asks for a look at each that may have changed, or is there no more."""

    kube: Kube
    worker: Worker
    queue: Queue
    namespaces: tuple[str, ...] = ()
    """None: all of them."""
    every: float = 300.0
    clock: Callable[[], float] = time.monotonic
    last: float | None = None
    """When all jobs were last listed that can be."""
    _left: list[str | None] = field(default_factory=list)
    """Namespaces that gave no answer; the next list is of these."""
    _refused: dict[str, str] = field(default_factory=dict)
    """Namespaces that cannot be listed, and what was said."""
    _counts: JobCounts = field(default_factory=JobCounts)

    def anew(self) -> None:
        """Let the next list be of all namespaces."""
        self._left = []

    async def read(self) -> None:
        """List all jobs, or those of the namespaces that gave no answer before.

        One that may not be listed is left alone: it may be gone, and its rights with it. Raises
        what kept the others from being listed, or all of them.
        """
        asked = self._left or list(self.namespaces or (None,))
        left: list[str | None] = []
        refused: list[KubeError] = []
        failed: KubeError | None = None
        for namespace in asked:
            if isinstance(failed, Unavailable) and not failed.code:
                left.append(namespace)  # nobody answers
                continue
            try:
                await self._list(namespace)
            except (Forbidden, NotFound) as error:
                refused.append(error)
                self._leave_alone(namespace, error)
            except KubeError as error:
                left.append(namespace)
                failed = error
        self._left = left
        metrics.count_jobs(self._counts.total())
        if failed is not None:
            raise failed
        if len(refused) == len(asked) and len(self._refused) >= len(self.namespaces):
            raise refused[0]
        for refusal in refused:
            metrics.API_ERRORS.labels(str(refusal.code)).inc()
        self.last = self.clock()

    async def _list(self, namespace: str | None) -> None:
        """List a namespace; of each job only its name and its version are kept."""
        found: dict[Key, str] = {}
        counts: Counter[Kind] = Counter()
        async for page in self.kube.pages(FINETUNE_JOBS, namespace):
            if page.begins:
                found.clear()
                counts.clear()
            for body in page.items:
                metadata = body["metadata"]
                found[Key(metadata["namespace"], metadata["name"])] = metadata["resourceVersion"]
                self.worker.known.listed(body)
                counts[kind_of(body)] += 1
            del page
        self._counts.listed(namespace, counts)
        if namespace is not None and self._refused.pop(namespace, None) is not None:
            log.info("the jobs of namespace %s can be listed again", namespace)
        self._look(found, namespace)

    def _look(self, found: dict[Key, str], namespace: str | None) -> None:
        for key in self.worker.met - found.keys():
            if namespace in (None, key.namespace):
                # Nobody told that it went: what is remembered of it would be looked at for ever.
                self.worker.known.forget(key)
                self.queue.add(key)
        first = self.last is None
        spread = 0.0 if first else min(SPREAD, self.every / 4)
        for key, version in found.items():
            if self.worker.settled.get(key) != version:
                delay = random.uniform(0, spread)  # noqa: S311 - spreads load
                self.queue.add(key, delay, 0.0 if first else PATIENCE)

    def _leave_alone(self, namespace: str | None, error: KubeError) -> None:
        self._counts.forget(namespace)
        if namespace is not None and namespace not in self._refused:
            log.warning(
                "namespace %s is left alone until its jobs can be listed: %s", namespace, error
            )
            self._refused[namespace] = str(error)
