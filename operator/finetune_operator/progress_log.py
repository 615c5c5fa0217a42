"""Progress from a pod's log, where the network keeps the operator from the pod itself.

Rank 0 writes one JSON line for each logged step. The last lines are read through the API server;
of them the newest counts that is of this job, this attempt and no older claim.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from finetune_api.reports import Progress
from finetune_operator.endings import harmless
from finetune_operator.kube import Forbidden, Kube, KubeError
from finetune_operator.progress import LIMIT, Source

log = logging.getLogger(__name__)

LINES = 64
"""Of the log's end: other lines may stand between those of two steps."""
REFUSED = 600.0
"""Seconds for which no log of a namespace is asked for after a refusal."""
_TOLD = {
    "totalSteps": "total_steps",
    "step": "step",
    "epoch": "epoch",
    "loss": "loss",
    "learningRate": "learning_rate",
    "gradientNorm": "gradient_norm",
    "tokensPerSecond": "tokens_per_second",
    "etaSeconds": "eta_seconds",
    "checkpoint": "checkpoint",
    "resumedFrom": "resumed_from",
}
"""Names in a line, and in ``Progress``."""


def newest(text: bytes, source: Source, before: Progress | None) -> Progress | None:
    """Return what the newest line says that can be believed; None where none can.

    The text comes out of a pod: anything may stand in it, cut off at any byte.
    """
    for line in reversed(text[:LIMIT].split(b"\n")):
        if not line.startswith(b"{") or b'"progress"' not in line:
            continue
        found = _of_line(line, source, before)
        if found is not None:
            return found
    return None


def _of_line(line: bytes, source: Source, before: Progress | None) -> Progress | None:
    try:
        said = harmless(json.loads(line))
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or said.get("event") != "progress":
        return None
    claim = said.get("claim")
    if said.get("job") != source.job_uid or said.get("attempt") != source.attempt:
        return None
    if not isinstance(claim, int) or isinstance(claim, bool) or "step" not in said:
        return None
    known = before if before is not None and before.attempt == source.attempt else None
    if known is not None and claim < known.claim:
        return None
    values: dict[str, Any] = {}
    if known is not None and known.claim == claim:
        # What the line does not hold was told by the pod itself, while it could be reached.
        values = known.model_dump()
    values |= {"job_uid": source.job_uid, "attempt": source.attempt, "claim": claim}
    values |= {field: said[name] for name, field in _TOLD.items() if name in said}
    try:
        return Progress.model_validate({**values, "phase": "training"})
    except (ValidationError, RecursionError):
        return None


class LogReader:
    """Reads logs through the API server, where it is not told that it has no right to."""

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        """Read through this client."""
        self._kube = kube
        self._clock = clock
        self._refused: dict[str, float] = {}
        """Namespaces in which the right is missing, and until when that is taken for true."""

    async def read(self, source: Source, before: Progress | None) -> Progress | None:
        """Return the newest progress in the log of a job's first pod; None where there is none."""
        namespace = source.key.namespace
        if not source.pod or self._clock() < self._refused.get(namespace, float("-inf")):
            return None
        try:
            text = await self._kube.log(
                namespace, source.pod, source.container, lines=LINES, limit=LIMIT
            )
        except Forbidden as error:
            self._refuse(namespace)
            log.info("progress is not read from logs in %s: %s", namespace, error)
            return None
        except KubeError as error:
            log.debug("the log of %s cannot be read: %s", source.pod, error)
            return None
        return newest(text, source, before)

    def _refuse(self, namespace: str) -> None:
        """Ask no more for a while: a namespace that goes, or an API server that starts, refuses too."""
        now = self._clock()
        self._refused = {name: until for name, until in self._refused.items() if until > now}
        self._refused[namespace] = now + REFUSED
