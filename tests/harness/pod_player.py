"""Plays what makes and runs pods: the Job controller, the garbage collector and a kubelet.

The control plane of these tests has neither controllers nor nodes. Jobs, pods and their status are
real objects of the real API server; only who writes them is played here, by a script that says how
the process of each child ends.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from finetune_api.checkpoint import CheckpointRef
from finetune_api.names import LABEL_ATTEMPT, LABEL_JOB, LABEL_STAGE, LABEL_UID
from finetune_api.reports import DataReport, TerminationReport
from harness.control_plane import Api, ApiError
from harness.simulation import make_choices, ref

FOREGROUND = "foregroundDeletion"
TRACKING = "batch.kubernetes.io/job-tracking"


DATA = DataReport(
    rows=90, rows_used=88, rows_dropped=2, sequences=80, tokens=1000, trained_tokens=310
)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Run:
    """How the process of one pod goes."""

    seconds: float = 0.0
    """For how long it runs before it ends; None of the states is skipped."""
    exit_code: int = 0
    forever: bool = False
    step: int = 60
    checkpoint: int | None = 60


def said(
    stage: str, uid: str, attempt: int, node: int, run: Run, began: CheckpointRef | None = None
) -> TerminationReport:
    """Return what the trainer would leave as its termination message."""
    saved = ref(max(attempt, 1), run.checkpoint) if run.checkpoint else None
    return TerminationReport(
        stage=stage,  # type: ignore[arg-type]
        job_uid=uid,
        attempt=attempt if stage == "train" else 0,
        claim=attempt if stage == "train" else 0,
        node=node,
        exit_code=run.exit_code,
        step=run.step if stage != "prepare" else 0,
        checkpoint=saved if stage == "train" else None,
        resumed_from=began,
        choices=make_choices() if stage == "prepare" and run.exit_code == 0 else None,
        data=DATA if stage == "prepare" and run.exit_code == 0 else None,
        output_digest="sha256:" + "b" * 64 if stage == "publish" else None,
        evaluation={"loss": 1.5} if stage == "publish" else {},
    )


@dataclass
class PodPlayer:
    """Runs in a thread until it is stopped."""

    api: Api
    namespace: str
    script: Callable[[str, int, int], Run] = lambda stage, attempt, node: Run()
    """(stage, attempt, node) -> what happens."""
    pause: float = 0.05
    """Seconds between two turns."""
    most_alive: dict[str, int] = field(default_factory=dict)
    """By job: the most children that had a pod running at the same time."""
    made: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _saved: dict[tuple[str, int], CheckpointRef] = field(default_factory=dict)
    _began: dict[str, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(20)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.turn()
            except (ApiError, OSError) as error:
                if not (isinstance(error, ApiError) and error.code in (404, 409)):
                    self.errors.append(repr(error))
            self._stop.wait(self.pause)

    def turn(self) -> None:
        """Do what is due, once."""
        jobs = self.api.get(f"/apis/batch/v1/namespaces/{self.namespace}/jobs")["items"]
        pods = self.api.get(f"/api/v1/namespaces/{self.namespace}/pods")["items"]
        self._count(pods)
        uids = {job["metadata"]["uid"] for job in jobs}
        for pod in pods:
            owner = pod["metadata"]["ownerReferences"][0]["uid"]
            if owner not in uids or "deletionTimestamp" in pod["metadata"]:
                self._end_pod(pod)
        for job in jobs:
            own = [
                p
                for p in pods
                if p["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
            ]
            self._play(job, own)

    def _count(self, pods: list[dict[str, Any]]) -> None:
        alive: dict[str, set[str]] = {}
        for pod in pods:
            if pod["status"].get("phase") in ("Pending", "Running"):
                labels = pod["metadata"]["labels"]
                owner = pod["metadata"]["ownerReferences"][0]["uid"]
                alive.setdefault(labels[LABEL_JOB], set()).add(owner)
        for job, owners in alive.items():
            self.most_alive[job] = max(len(owners), self.most_alive.get(job, 0))

    def _play(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        metadata = job["metadata"]
        if "deletionTimestamp" in metadata:
            if pods:
                for pod in pods:
                    self._end_pod(pod)
            else:
                self._drop_finalizers(job)
            return
        done = {c["type"] for c in job["status"].get("conditions") or () if c["status"] == "True"}
        if done & {"Complete", "Failed"} or job["spec"].get("suspend"):
            return
        wanted = job["spec"]["parallelism"]
        if len(pods) < wanted:
            for index in range(wanted):
                self._make_pod(job, index)
            return
        for pod in pods:
            self._run_pod(pod)
        phases = [pod["status"].get("phase") for pod in pods]
        if "Failed" in phases:
            self._finish(job, "Failed", phases)
            for pod in pods:
                if pod["status"].get("phase") in ("Running", "Pending"):
                    self._end_pod(pod)
        elif all(phase == "Succeeded" for phase in phases):
            self._finish(job, "Complete", phases)

    def _make_pod(self, job: dict[str, Any], index: int) -> None:
        metadata, template = job["metadata"], job["spec"]["template"]
        name = f"{metadata['name']}-{index}-abcde"
        labels = {
            **template["metadata"].get("labels", {}),
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": labels,
                "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
                "ownerReferences": [
                    {
                        "apiVersion": "batch/v1",
                        "kind": "Job",
                        "name": metadata["name"],
                        "uid": metadata["uid"],
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
            },
            "spec": template["spec"],
        }
        try:
            self.api.request("POST", f"/api/v1/namespaces/{self.namespace}/pods", body)
            self.made.append(name)
        except ApiError as error:
            if error.code != 409:
                raise

    def _run_pod(self, pod: dict[str, Any]) -> None:
        phase, uid = pod["status"].get("phase"), pod["metadata"]["uid"]
        if phase == "Pending":
            self._began[uid] = time.monotonic()
            state = {"running": {"startedAt": now()}}
            self._pod_status(pod, "Running", state)
        elif phase == "Running":
            run = self._script_of(pod)
            began = self._began.setdefault(uid, time.monotonic())
            if not run.forever and time.monotonic() - began >= run.seconds:
                self._terminate(pod, run)

    def _script_of(self, pod: dict[str, Any]) -> Run:
        stage, attempt, node = self._who(pod)
        return self.script(stage, attempt, node)

    def _who(self, pod: dict[str, Any]) -> tuple[str, int, int]:
        labels = pod["metadata"]["labels"]
        index = int(labels["batch.kubernetes.io/job-completion-index"])
        return labels[LABEL_STAGE], int(labels.get(LABEL_ATTEMPT, 0)), index

    def _terminate(self, pod: dict[str, Any], run: Run) -> None:
        stage, attempt, node = self._who(pod)
        uid = pod["metadata"]["labels"][LABEL_UID]
        earlier = [at for job, at in self._saved if job == uid and at < attempt]
        began = self._saved[(uid, max(earlier))] if stage == "train" and earlier else None
        report = said(stage, uid, attempt, node, run, began)
        if report.checkpoint is not None:
            self._saved[(uid, attempt)] = report.checkpoint
        state = {
            "terminated": {
                "exitCode": run.exit_code,
                "reason": "Completed" if run.exit_code == 0 else "Error",
                "startedAt": now(),
                "finishedAt": now(),
                "message": json.dumps(report.to_json()),
            }
        }
        self._pod_status(pod, "Failed" if run.exit_code else "Succeeded", state)

    def _pod_status(self, pod: dict[str, Any], phase: str, state: dict[str, Any]) -> None:
        container = pod["spec"]["containers"][0]
        status = {
            "phase": phase,
            "startTime": pod["status"].get("startTime") or now(),
            "podIP": "127.0.0.1",
            "podIPs": [{"ip": "127.0.0.1"}],
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": "",
                    "ready": phase == "Running",
                    "restartCount": 0,
                    "state": state,
                }
            ],
        }
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}/status"
        patch = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status}
        self.api.request("PATCH", path, patch, "application/merge-patch+json")

    def _end_pod(self, pod: dict[str, Any]) -> None:
        """SIGTERM: the process saves and ends with 143; then the object goes."""
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}"
        if "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") == "Running":
            stage, _, _ = self._who(pod)
            self._terminate(
                pod, Run(exit_code=143, step=30, checkpoint=30 if stage == "train" else None)
            )
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
        self.api.request("DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", **options})

    def _drop_finalizers(self, job: dict[str, Any]) -> None:
        path = f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{job['metadata']['name']}"
        patch = {"metadata": {"uid": job["metadata"]["uid"], "finalizers": None}}
        self.api.request("PATCH", path, patch, "application/merge-patch+json")

    def _finish(self, job: dict[str, Any], how: str, phases: list[str]) -> None:
        at = now()
        first = "SuccessCriteriaMet" if how == "Complete" else "FailureTarget"
        status: dict[str, Any] = {
            "startTime": job["status"].get("startTime") or at,
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": at, "reason": "Played"}
                for kind in (first, how)
            ],
            "succeeded": phases.count("Succeeded"),
            "failed": phases.count("Failed"),
            "active": 0,
            "ready": 0,
        }
        if how == "Complete":
            status["completionTime"] = at
            status["completedIndexes"] = "0" if len(phases) == 1 else f"0-{len(phases) - 1}"
        path = f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{job['metadata']['name']}/status"
        patch = {"metadata": {"uid": job["metadata"]["uid"]}, "status": status}
        self.api.request("PATCH", path, patch, "application/merge-patch+json")
