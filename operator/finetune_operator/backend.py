"""Backends by name: what an attempt is made of, and how the state of its child is read. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from finetune_api.names import LABEL_QUEUE
from finetune_api.resolved import StageConfig
from finetune_operator.endings import condition
from finetune_operator.gang import Facts, members, state
from finetune_operator.observed import ChildState
from finetune_operator.plan.situation import time_of
from finetune_operator.render import Object
from finetune_operator.render.cpu_job import cpu_job
from finetune_operator.render.indexed_job import indexed_job
from finetune_operator.render.placement import Placement
from finetune_operator.render.pytorch_job import pytorch_job
from finetune_operator.resolve.paths import look

Seen = Mapping[str, Any]
MOST = 4096
"""As ``resources.nodes`` allows."""
BackendName = Literal["PyTorchJob", "Job"]


@dataclass(frozen=True)
class Backend:
    """How attempts become children of one kind, and how such a child is read."""

    kind: BackendName
    api_version: str
    plural: str
    render: Callable[[StageConfig, str, Placement], tuple[Object, ...]]
    """(configuration, name of the child, placement) -> objects, the child last."""
    facts: Callable[[Seen], Facts]

    def read(
        self,
        child: Seen,
        pods: Sequence[Seen],
        gone: Sequence[Seen] = (),
        events: Sequence[Seen] = (),
        processes: int | None = None,
    ) -> ChildState:
        """Return the state of a child.

        Args:
            child: the object as it is now.
            pods: those that exist; those of other owners are left out here.
            gone: pods as they were last seen before they were deleted.
            events: of the child and its pods, for the reason why they do not run.
            processes: how many it was made with, where that is known: a tenant may have edited it.
        """
        facts = self.facts(child)
        facts = facts if processes is None else replace(facts, processes=processes)
        return state(facts, members(facts.uid, pods, gone), events)


def prepare_or_publish(
    config: StageConfig, child: str, number: int, placement: Placement
) -> tuple[Object, ...]:
    """Return the objects of a preparation or publishing: its Job."""
    return (cpu_job(config, child, number, placement),)


def attempt(
    backend: Backend, config: StageConfig, child: str, placement: Placement
) -> tuple[Object, ...]:
    """Return the objects of an attempt in the order in which to make them, the child last."""
    return backend.render(config, child, placement)


def remains(
    name: str, uid: str, processes: int, pods: Sequence[Seen], gone: Sequence[Seen] = ()
) -> ChildState:
    """Return the state of a child whose object is gone: its pods may still be ending."""
    facts = Facts(name=name, uid=uid, processes=processes, finished="Failed")
    return state(facts, members(uid, pods, gone))


def choose(wanted: str | None, available: Sequence[str]) -> Backend | None:
    """Return the backend of a job; None where the cluster has not what it names.

    A job that names none gets a PyTorchJob where the cluster has them, for their queues and tools;
    a Job can be had anywhere.
    """
    if wanted is not None:
        return BACKENDS.get(wanted) if wanted in available else None
    return next((backend for name, backend in BACKENDS.items() if name in available), None)


def pytorch_facts(child: Seen) -> Facts:
    """Return what a PyTorchJob says.

    Running says only that one worker does, and Failed stays whatever follows. The start time is
    that of the newest admission; where a queue decides and there is none yet, the time of creation
    would count the waiting.
    """
    holds = {kind: condition(child, kind).get("status") == "True" for kind in _PYTORCH_WORDS}
    queue = _queue(child)
    since = _time(look(child, "status", "startTime"))
    if since is None and not queue:
        since = _time(look(child, "metadata", "creationTimestamp"))
    replicas = look(child, "spec", "pytorchReplicaSpecs", "Worker", "replicas")
    suspended = look(child, "spec", "runPolicy", "suspend") is True
    return Facts(
        name=str(look(child, "metadata", "name") or ""),
        uid=str(look(child, "metadata", "uid") or ""),
        processes=_processes(replicas),
        word=next((kind for kind, true in holds.items() if true), ""),
        finished="Failed" if holds["Failed"] else "Succeeded" if holds["Succeeded"] else "",
        suspended=suspended,
        emptied="spec.pytorchReplicaSpecs.Worker.replicas" if _is_zero(replicas) else "",
        total=_count(replicas),
        queue=queue,
        active_since=None if suspended else since,
        deleted_at=_time(look(child, "metadata", "deletionTimestamp")),
        completed_at=_time(look(child, "status", "completionTime")),
    )


_PYTORCH_WORDS = ("Failed", "Succeeded", "Restarting", "Suspended", "Running", "Created")
"""Condition types; of those that hold, the first says most."""
_JOB_WORDS = ("Failed", "Complete", "FailureTarget", "SuccessCriteriaMet", "Suspended")


def job_facts(child: Seen) -> Facts:
    """Return what a ``batch/v1`` Job says. After FailureTarget it makes no pod any more."""
    holds = {kind: condition(child, kind).get("status") == "True" for kind in _JOB_WORDS}
    queue = _queue(child)
    since = _time(look(child, "status", "startTime"))
    if since is None and not queue:
        since = _time(look(child, "metadata", "creationTimestamp"))
    parallelism = look(child, "spec", "parallelism")
    suspended = look(child, "spec", "suspend") is True
    failed = holds["Failed"] or holds["FailureTarget"]
    return Facts(
        name=str(look(child, "metadata", "name") or ""),
        uid=str(look(child, "metadata", "uid") or ""),
        processes=_processes(parallelism),
        word=next((kind for kind, true in holds.items() if true), _active(child)),
        finished="Failed" if failed else "Succeeded" if holds["Complete"] else "",
        suspended=suspended,
        emptied="spec.parallelism" if _is_zero(parallelism) else "",
        total=_count(look(child, "spec", "completions")),
        queue=queue,
        active_since=None if suspended else since,
        deleted_at=_time(look(child, "metadata", "deletionTimestamp")),
        completed_at=_time(look(child, "status", "completionTime")),
    )


def _is_zero(said: Any) -> bool:
    return _count(said) == 0


def _count(said: Any) -> int | None:
    return said if isinstance(said, int) and not isinstance(said, bool) else None


def _processes(said: Any) -> int:
    """Return how many pods a child is to have; a tenant may have edited it."""
    return min(said, MOST) if isinstance(said, int) and said > 0 else 1


def _active(child: Seen) -> str:
    return "Active" if look(child, "status", "active") else ""


def _queue(child: Seen) -> str:
    name = look(child, "metadata", "labels", LABEL_QUEUE)
    return name if isinstance(name, str) else ""


def _time(text: Any) -> datetime | None:
    return time_of(text) if isinstance(text, str) else None


def _as_job(config: StageConfig, child: str, placement: Placement) -> tuple[Object, ...]:
    return indexed_job(config, child, placement)


def _as_pytorch_job(config: StageConfig, child: str, placement: Placement) -> tuple[Object, ...]:
    return (pytorch_job(config, child, placement),)


BACKENDS: Mapping[str, Backend] = {
    "PyTorchJob": Backend(
        "PyTorchJob", "kubeflow.org/v1", "pytorchjobs", _as_pytorch_job, pytorch_facts
    ),
    "Job": Backend("Job", "batch/v1", "jobs", _as_job, job_facts),
}
CPU_STAGES = BACKENDS["Job"]
"""Reads the Jobs of preparation and publishing."""
