"""A FineTuneJob of a cluster as this client reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from finetune_api import API_VERSION
from finetune_api.names import workspace_claim, workspace_folder
from finetune_api.problem import Problem, Refused
from finetune_api.reports import Progress
from finetune_api.status import JobStatus
from finetune_cli.cluster.connection import ApiRefusal, Cluster, NoAnswer, refused
from finetune_operator.resolve.paths import look

ROOT = f"/apis/{API_VERSION}"


@dataclass(frozen=True)
class Identity:
    """The name under which a view shows a job."""

    name: str


@dataclass(frozen=True)
class ClusterJob:
    """What was read of one job."""

    name: str
    namespace: str
    uid: str
    version: str
    """Its resourceVersion."""
    created: str
    generation: int
    spec: Mapping[str, Any]
    status: JobStatus

    @property
    def metadata(self) -> Identity:
        """For the views, which know local jobs too."""
        return Identity(self.name)

    @property
    def retrying(self) -> bool:
        """True when a failed job was asked to try again and the operator has not begun to."""
        asked = look(self.spec, "recovery", "retryGeneration")
        wanted = asked if isinstance(asked, int) else 0
        return self.status.outcome == "Failed" and wanted > self.status.retry_generation

    @property
    def ended(self) -> bool:
        """True when nothing more will happen."""
        return self.status.outcome is not None and not self.retrying

    @property
    def folder(self) -> str:
        """The job's folder: ``pvc://claim/folder``."""
        named = look(self.spec, "workspace", "claimName")
        claim = named if isinstance(named, str) and named else workspace_claim(self.name)
        return f"pvc://{claim}/{workspace_folder(self.name, self.uid)}"


def jobs_path(namespace: str, name: str = "") -> str:
    """Return the path of a job, or of all jobs of a namespace."""
    path = f"{ROOT}/namespaces/{quote(namespace, safe='')}/finetunejobs"
    return f"{path}/{quote(name, safe='')}" if name else path


def parse(body: Mapping[str, Any]) -> ClusterJob:
    """Return a job; what a newer operator says beyond what this client knows is left out."""
    metadata = _section(body, "metadata")
    generation = metadata.get("generation")
    return ClusterJob(
        name=str(metadata.get("name") or ""),
        namespace=str(metadata.get("namespace") or ""),
        uid=str(metadata.get("uid") or ""),
        version=str(metadata.get("resourceVersion") or ""),
        created=str(metadata.get("creationTimestamp") or ""),
        generation=generation if isinstance(generation, int) else 0,
        spec=_section(body, "spec"),
        status=read_status(_section(body, "status")),
    )


def _section(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = body.get(name)
    return found if isinstance(found, Mapping) else {}


def read_status(data: Mapping[str, Any]) -> JobStatus:
    """Return a status without what this client does not understand.

    Raises ``Refused`` where nothing of it can be understood.
    """
    left = dict(data)
    for _ in range(256):
        try:
            return JobStatus.model_validate(left)
        except ValidationError as error:
            if not any(_cut(left, problem["loc"]) for problem in error.errors()):
                break
    raise Refused(
        Problem(
            code="status-not-understood",
            message="the status of the job is not one that this client understands",
            fix="compare client and operator with finetune version, and install the same of both",
        )
    )


def _cut(data: Any, place: tuple[int | str, ...]) -> bool:
    """Remove the innermost thing at a place that is there; tells whether there was one."""
    holder: Any = None
    key: int | str = ""
    for part in place:
        inside = isinstance(data, dict) and part in data
        if not inside and not (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        ):
            break
        data[part] = _copied(data[part])
        holder, key, data = data, part, data[part]
    if holder is None:
        return False
    del holder[key]
    return True


def _copied(value: Any) -> Any:
    return (
        dict(value)
        if isinstance(value, dict)
        else list(value)
        if isinstance(value, list)
        else value
    )


def read_job(cluster: Cluster, name: str) -> ClusterJob:
    """Return a job as it is now.

    Raises ``Refused`` where it is not there, or cannot be read, and ``NoAnswer``.
    """
    if not name.isascii():
        raise not_found(cluster, name)
    try:
        body = cluster.get(jobs_path(cluster.namespace, name))
    except ApiRefusal as error:
        raise missing(error, cluster, name) from error
    if look(body, "metadata", "name") != name or not look(body, "metadata", "uid"):
        raise NoAnswer("what answers is no API server: its answer is not the job")
    return parse(body)


def missing(error: ApiRefusal, cluster: Cluster, name: str) -> Refused:
    """Return what a user reads when a job could not be read."""
    if error.code != 404:
        return refused(error, cluster, "read finetunejobs")
    if error.reason == "NotFound" and name and name in error.message:
        return not_found(cluster, name)
    return Refused(
        Problem(
            code="crd-missing",
            message=f"{cluster.place} does not know FineTuneJobs ({API_VERSION})",
            fix="install the chart finetune-operator, which brings the definitions",
        )
    )


def not_found(cluster: Cluster, name: str) -> Refused:
    """Return what a user reads when there is no job of a name."""
    return Refused(
        Problem(
            code="job-not-found",
            message=f"no job {name} in namespace {cluster.namespace} of {cluster.place}",
            fix="see kubectl get finetunejobs --all-namespaces, and name the namespace with -n",
        )
    )


def progress_of(job: ClusterJob) -> Progress | None:
    """Return the progress that the status tells, in the form that the views show."""
    status, told = job.status, job.status.progress
    if told is None or not status.attempt:
        return None
    return Progress(
        job_uid=job.uid,
        attempt=status.attempt,
        claim=0,
        phase="training",
        step=told.step,
        total_steps=told.total_steps,
        epoch=told.epoch,
        loss=told.loss,
        tokens_per_second=told.tokens_per_second,
        eta_seconds=told.eta_seconds,
        checkpoint=status.checkpoint,
    )
