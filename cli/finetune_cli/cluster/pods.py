"""The pods of a job, and which of them a reader of logs means. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from finetune_api.names import LABEL_ATTEMPT, LABEL_STAGE
from finetune_api.resolved import Stage
from finetune_operator.resolve.paths import look

STAGES: tuple[Stage, ...] = ("prepare", "train", "publish")
"""In the order in which they come; nothing else runs in pods."""
_INDEXES = (
    "training.kubeflow.org/replica-index",
    "batch.kubernetes.io/job-completion-index",
)
_OURS = ("trainer", "pytorch")
"""Names of our container; what clusters inject beside it is not what is asked for."""


@dataclass(frozen=True)
class JobPod:
    """One pod of a job."""

    name: str
    uid: str
    stage: Stage
    attempt: int
    """Number of the attempt, or of the try of preparation or publishing; from 1."""
    rank: int
    """Its place among the pods of the attempt, from 0."""
    container: str
    state: Literal["waiting", "running", "ended"]
    why: str = ""
    """Why it waits, in the platform's word."""

    @property
    def run(self) -> tuple[int, int]:
        """Stage and number, in the order in which they come."""
        return STAGES.index(self.stage), self.attempt


@dataclass(frozen=True)
class Wanted:
    """What a reader asks for; None: whatever is newest."""

    stage: str | None = None
    attempt: int | None = None
    rank: int | None = None
    previous: bool = False
    """The run before the newest."""


def read_pod(body: Mapping[str, Any]) -> JobPod | None:
    """Return a pod of a job; None for one without our labels."""
    labels = look(body, "metadata", "labels") or {}
    stage, number = labels.get(LABEL_STAGE), str(labels.get(LABEL_ATTEMPT) or "")
    if stage not in STAGES or not number.isdigit():
        return None
    indexes = [str(labels[key]) for key in _INDEXES if str(labels.get(key) or "").isdigit()]
    names = [str(one.get("name")) for one in look(body, "spec", "containers") or ()]
    container = next((name for name in names if name in _OURS), names[0] if names else "")
    state, why = _state(body, container)
    return JobPod(
        name=str(look(body, "metadata", "name")),
        uid=str(look(body, "metadata", "uid")),
        stage=stage,
        attempt=int(number),
        rank=int(indexes[0]) if indexes else 0,
        container=container,
        state=state,
        why=why,
    )


def _state(
    body: Mapping[str, Any], container: str
) -> tuple[Literal["waiting", "running", "ended"], str]:
    if look(body, "status", "phase") in ("Succeeded", "Failed"):
        return "ended", ""
    statuses = look(body, "status", "containerStatuses") or ()
    mine: Mapping[str, Any] = next((one for one in statuses if one.get("name") == container), {})
    if look(mine, "state", "terminated") is not None:
        return "ended", ""
    if look(mine, "state", "running") is not None:
        return "running", ""
    return "waiting", str(look(mine, "state", "waiting", "reason") or "not scheduled yet")


def choose(pods: Iterable[JobPod], wanted: Wanted) -> tuple[JobPod, ...]:
    """Return the pods of one run, by rank: the newest that is wanted; empty where there is none."""
    runs = list(_runs(pods, wanted))
    if wanted.previous:
        runs = runs[:-1]
    return _of_rank(runs[-1], wanted) if runs else ()


def from_run(pods: Iterable[JobPod], wanted: Wanted, first: tuple[int, int]) -> tuple[JobPod, ...]:
    """Return the pods of a run and of all later ones that are wanted."""
    found: list[JobPod] = []
    for run in _runs(pods, wanted):
        if run[0].run >= first:
            found += _of_rank(run, wanted)
    return tuple(found)


def _of_rank(run: tuple[JobPod, ...], wanted: Wanted) -> tuple[JobPod, ...]:
    return tuple(pod for pod in run if wanted.rank in (None, pod.rank))


def _runs(pods: Iterable[JobPod], wanted: Wanted) -> Iterable[tuple[JobPod, ...]]:
    """Yield the pods of each run in order."""
    stage = wanted.stage or ("train" if wanted.attempt is not None else None)
    fitting = [
        pod for pod in pods if stage in (None, pod.stage) and wanted.attempt in (None, pod.attempt)
    ]
    fitting.sort(key=lambda pod: (pod.run, pod.rank, pod.name))
    for _, run in groupby(fitting, key=lambda pod: pod.run):
        yield tuple(run)
