"""Shapes of the children that ``pod_player`` plays the controllers of: Jobs and PyTorchJobs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.binaries import GO

Object = dict[str, Any]
JOB_INDEX = "batch.kubernetes.io/job-completion-index"
WORKER_INDEX = "training.kubeflow.org/replica-index"


def pytorch_job_definition() -> Path:
    """Return the CustomResourceDefinition of the training operator, as its Go module holds it."""
    module = "github.com/kubeflow/training-operator"
    command = ["go", "list", "-m", "-f", "{{.Version}}", module]
    folder = GO / "training-operator"
    version = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()
    command = ["go", "mod", "download", "-json", f"{module}@{version}"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    return Path(json.loads(said)["Dir"]) / "manifests/base/crds/kubeflow.org_pytorchjobs.yaml"


@dataclass(frozen=True)
class Kind:
    """How one kind of child says what it wants, and is told how it stands."""

    name: str
    api_version: str
    plural: str
    index: str
    """The label with a pod's number."""
    wanted: Callable[[Object], int]
    suspended: Callable[[Object], bool]
    template: Callable[[Object], Object]
    pod_name: str
    extra_labels: Callable[[str], dict[str, str]]
    began: Callable[[str], Object]
    """(time) -> status once its pods are made."""
    paused: Callable[[str], Object]
    ended: Callable[[bool, list[str], str], Object]
    """(success, phases of the pods, time) -> status at the end."""
    replaces_pending: bool
    """A pod that is deleted before it runs is made again, and is no failure."""

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Return the address of a child, or of all of them."""
        parts = [f"/apis/{self.api_version}/namespaces/{namespace}", self.plural]
        return "/".join([*parts, *(part for part in (name, subresource) if part)])

    def over(self, child: Object) -> bool:
        """Whether the child has its end in its status."""
        conditions = child.get("status", {}).get("conditions") or ()
        done = {one["type"] for one in conditions if one["status"] == "True"}
        return bool(done & {"Complete", "Succeeded", "Failed"})


def _job_ended(success: bool, phases: list[str], at: str) -> Object:
    first, last = ("SuccessCriteriaMet", "Complete") if success else ("FailureTarget", "Failed")
    status: Object = {
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": at, "reason": "Played"}
            for kind in (first, last)
        ],
        "succeeded": phases.count("Succeeded"),
        "failed": phases.count("Failed"),
        "active": 0,
        "ready": 0,
    }
    if success:
        status["completionTime"] = at
        status["completedIndexes"] = "0" if len(phases) == 1 else f"0-{len(phases) - 1}"
    return status


def _pytorch_conditions(at: str, *kinds: tuple[str, str]) -> list[Object]:
    return [
        {
            "type": kind,
            "status": status,
            "reason": f"PyTorchJob{kind}",
            "message": "",
            "lastTransitionTime": at,
            "lastUpdateTime": at,
        }
        for kind, status in kinds
    ]


def _pytorch_ended(success: bool, phases: list[str], at: str) -> Object:
    last = "Succeeded" if success else "Failed"
    kinds = (("Created", "True"), ("Running", "False"), (last, "True"))
    counts = {"succeeded": phases.count("Succeeded"), "failed": phases.count("Failed")}
    return {
        "conditions": _pytorch_conditions(at, *kinds),
        "replicaStatuses": {"Worker": {"active": 0, **counts}},
        "completionTime": at,
    }


JOB = Kind(
    name="Job",
    api_version="batch/v1",
    plural="jobs",
    index=JOB_INDEX,
    wanted=lambda child: int(child["spec"]["parallelism"]),
    suspended=lambda child: bool(child["spec"].get("suspend")),
    template=lambda child: dict(child["spec"]["template"]),
    pod_name="{child}-{index}-abcde",
    extra_labels=lambda child: {"job-name": child, "batch.kubernetes.io/job-name": child},
    began=lambda at: {"startTime": at},
    paused=lambda at: {
        "startTime": None,
        "active": 0,
        "ready": 0,
        "conditions": [
            {"type": "Suspended", "status": "True", "reason": "Played", "lastTransitionTime": at}
        ],
    },
    ended=_job_ended,
    replaces_pending=False,
)
PYTORCH_JOB = Kind(
    name="PyTorchJob",
    api_version="kubeflow.org/v1",
    plural="pytorchjobs",
    index=WORKER_INDEX,
    wanted=lambda child: int(child["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"]),
    suspended=lambda child: bool(child["spec"]["runPolicy"].get("suspend")),
    template=lambda child: dict(child["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]),
    pod_name="{child}-worker-{index}",
    extra_labels=lambda child: {
        "training.kubeflow.org/job-name": child,
        "training.kubeflow.org/operator-name": "pytorchjob-controller",
        "training.kubeflow.org/replica-type": "worker",
    },
    began=lambda at: {
        "startTime": at,
        "conditions": _pytorch_conditions(at, ("Created", "True"), ("Running", "True")),
    },
    paused=lambda at: {
        "startTime": None,
        "conditions": _pytorch_conditions(at, ("Created", "True"), ("Suspended", "True")),
    },
    ended=_pytorch_ended,
    replaces_pending=True,
)
KINDS = {kind.name: kind for kind in (JOB, PYTORCH_JOB)}


def owner_of(pod: Object) -> str:
    """Return the uid of the child that a pod belongs to; empty where it was orphaned."""
    owners = pod["metadata"].get("ownerReferences") or ()
    return str(owners[0]["uid"]) if owners else ""


def index_of(pod: Object) -> int:
    """Return the number of a pod."""
    labels = pod["metadata"]["labels"]
    return next(int(labels[kind.index]) for kind in KINDS.values() if kind.index in labels)


def no_room(at: str) -> Object:
    """Return the condition of a pod that fits on no node."""
    return {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
        "lastTransitionTime": at,
    }


def to_make_room(at: str) -> Object:
    """Return the condition of a pod that goes for one of higher priority."""
    return {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": "default-scheduler: preempting to accommodate a higher priority pod",
        "lastTransitionTime": at,
    }
