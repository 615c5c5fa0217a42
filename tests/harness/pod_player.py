"""Plays what makes and runs pods: controllers of Jobs and PyTorchJobs, garbage collector, kubelet.

The control plane of these tests has neither controllers nor nodes. Children, pods and their status
are real objects of the real API server; only who writes them is played here, by a script that says
how the process of each child ends.
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
from harness.control_plane import Api, ApiError
from harness.kept_api import KeptApi
from harness.played_children import KINDS, Kind, index_of, no_room, owner_of, to_make_room
from harness.played_runs import Run, Script, said

FOREGROUND = "foregroundDeletion"
NODE = "node1"
Object = dict[str, Any]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class PodPlayer:
    """Runs in a thread until it is stopped."""

    api: Api
    namespace: str
    script: Script = lambda stage, attempt, node: Run()
    scripts: dict[str, Script] = field(default_factory=dict)
    """Of jobs by name that have one of their own."""
    pytorch: bool = False
    """The cluster has PyTorchJobs."""
    collects: bool = False
    """What jobs that are gone owned is removed, as the garbage collector does."""
    held: set[str] = field(default_factory=set)
    """Beginnings of the names of pods that do not begin to run."""
    roomless: set[str] = field(default_factory=set)
    """Beginnings of the names of pods for which the scheduler finds no node."""
    lost: set[str] = field(default_factory=set)
    """Names of pods whose node has gone: they stay as they are, and their controller sees no change."""
    still: bool = False
    """Nothing happens: the controllers and the kubelet are away."""
    clock: Callable[[], str] = now
    pause: float = 0.05
    """Seconds between two turns."""
    address: Callable[[str], str] = lambda job: "127.0.0.1"
    """(name of the job) -> address of its pods."""
    most_alive: dict[str, int] = field(default_factory=dict)
    """By job: the most children that had a pod running at the same time."""
    made: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _saved: dict[tuple[str, int], CheckpointRef] = field(default_factory=dict)
    _began: dict[str, float] = field(default_factory=dict)
    _places: dict[tuple[str, int], tuple[str, bool]] = field(default_factory=dict)
    """(child's uid, index) -> the pod's uid, and whether it ran."""
    _client: Any = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self._client = self.api

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(20)

    def _run(self) -> None:
        self._client = KeptApi(self.api)
        try:
            self._go_on()
        finally:
            self._client.close()

    def _go_on(self) -> None:
        while not self._stop.is_set():
            try:
                if not self.still:
                    self.turn()
            except (ApiError, OSError) as error:
                if not (isinstance(error, ApiError) and error.code in (404, 409, 429)):
                    self.errors.append(repr(error))
            self._stop.wait(self.pause)

    def turn(self) -> None:
        """Do what is due, once."""
        if self.collects:
            self._collect()
        kinds = [kind for kind in KINDS.values() if self.pytorch or kind.name == "Job"]
        children = [
            (kind, child)
            for kind in kinds
            for child in self._client.get(kind.path(self.namespace))["items"]
            if LABEL_UID in (child["metadata"].get("labels") or {})
        ]
        pods = self._client.get(f"/api/v1/namespaces/{self.namespace}/pods")["items"]
        self._count(pods)
        uids = {child["metadata"]["uid"] for _, child in children}
        for pod in pods:
            owner = owner_of(pod)
            if (owner and owner not in uids) or "deletionTimestamp" in pod["metadata"]:
                self._end_pod(pod)
            elif not owner:
                self._run_pod(pod)
        for kind, child in children:
            own = [pod for pod in pods if owner_of(pod) == child["metadata"]["uid"]]
            self._play(kind, child, own)

    def preempt(self, name: str) -> None:
        """Tell a pod to make room, as the scheduler does for one of higher priority."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}"
        status = {"status": {"conditions": [to_make_room(self.clock())]}}
        self.api.request("PATCH", f"{path}/status", status, "application/merge-patch+json")
        self.api.delete(path)

    def lose(self, name: str) -> None:
        """Lose the node of a pod, which the cluster then tells to end."""
        self.lost.add(name)
        self.api.request("DELETE", f"/api/v1/namespaces/{self.namespace}/pods/{name}", {})

    def _collect(self) -> None:
        """Remove what belongs to a FineTuneJob that does not exist any more."""
        root = f"/apis/finetune.dev/v1alpha1/namespaces/{self.namespace}/finetunejobs"
        there = {job["metadata"]["uid"] for job in self._client.get(root)["items"]}
        core = f"/api/v1/namespaces/{self.namespace}"
        paths = [f"{core}/{plural}" for plural in _OWNED]
        paths += [k.path(self.namespace) for k in KINDS.values() if self.pytorch or k.name == "Job"]
        for path in paths:
            for body in self._client.get(path)["items"]:
                owners = body["metadata"].get("ownerReferences") or ()
                if any(o["kind"] == "FineTuneJob" and o["uid"] not in there for o in owners):
                    options = {"propagationPolicy": "Background"}
                    self._client.request("DELETE", f"{path}/{body['metadata']['name']}", options)

    def _count(self, pods: list[Object]) -> None:
        alive: dict[str, set[str]] = {}
        for pod in pods:
            if pod["status"].get("phase") in ("Pending", "Running"):
                labels = pod["metadata"]["labels"]
                child = owner_of(pod) or f"{labels[LABEL_STAGE]} {labels[LABEL_ATTEMPT]}"
                alive.setdefault(labels[LABEL_JOB], set()).add(child)
        for job, owners in alive.items():
            self.most_alive[job] = max(len(owners), self.most_alive.get(job, 0))

    def _play(self, kind: Kind, child: Object, pods: list[Object]) -> None:
        """Do what the controller of this kind does."""
        metadata = child["metadata"]
        if "deletionTimestamp" in metadata:
            if "orphan" in metadata.get("finalizers", ()):
                self._orphan(pods)
                self._drop_finalizers(kind, child)
                return
            for pod in pods:
                self._end_pod(pod)
            if not pods:
                self._drop_finalizers(kind, child)
            return
        if kind.over(child):
            self._end_running(pods)
            return
        if kind.suspended(child):
            self._pause(kind, child, pods)
            return
        wanted = kind.wanted(child)
        for pod in pods:
            if index_of(pod) >= wanted:
                self._places.pop((metadata["uid"], index_of(pod)), None)
                self._end_pod(pod)
        pods = [pod for pod in pods if index_of(pod) < wanted]
        lost = self._lost(kind, child, pods, wanted)
        if lost:
            self._finish(kind, child, False, ["Failed"])
            self._end_running(pods)
            return
        missing = sorted(set(range(wanted)) - {index_of(pod) for pod in pods})
        for index in missing:
            self._make_pod(kind, child, index)
        if missing:
            return
        for pod in pods:
            self._run_pod(pod)
        phases = [pod["status"].get("phase") for pod in pods]
        if "Failed" in phases:
            self._finish(kind, child, False, phases)
            self._end_running(pods)
        elif phases and all(phase == "Succeeded" for phase in phases):
            self._finish(kind, child, True, phases)
        elif not child.get("status", {}).get("startTime"):
            self._child_status(kind, child, kind.began(self.clock()))

    def _lost(self, kind: Kind, child: Object, pods: list[Object], wanted: int) -> bool:
        """Tell whether a pod was taken away: with one of these, the whole has failed."""
        uid = child["metadata"]["uid"]
        there = {index_of(pod): pod for pod in pods}
        for index in range(wanted):
            known, ran = self._places.get((uid, index), ("", False))
            pod = there.get(index)
            if known and (pod is None or pod["metadata"]["uid"] != known):
                if ran or not kind.replaces_pending:
                    return True
                del self._places[(uid, index)]
            told = pod is not None and "deletionTimestamp" in pod["metadata"]
            told = told and pod["metadata"]["name"] not in self.lost
            if told and (ran or not kind.replaces_pending):
                return True
        return False

    def _pause(self, kind: Kind, child: Object, pods: list[Object]) -> None:
        for pod in pods:
            self._end_pod(pod)
        for place in [place for place in self._places if place[0] == child["metadata"]["uid"]]:
            del self._places[place]
        conditions = child.get("status", {}).get("conditions") or ()
        if not pods and not any(one["type"] == "Suspended" for one in conditions):
            self._child_status(kind, child, kind.paused(self.clock()))

    def _end_running(self, pods: list[Object]) -> None:
        for pod in pods:
            if pod["status"].get("phase") in ("Running", "Pending"):
                self._end_pod(pod)

    def _make_pod(self, kind: Kind, child: Object, index: int) -> None:
        metadata, template = child["metadata"], kind.template(child)
        name = kind.pod_name.format(child=metadata["name"], index=index)
        labels = {
            **template["metadata"].get("labels", {}),
            **kind.extra_labels(metadata["name"]),
            kind.index: str(index),
        }
        annotations = {**template["metadata"].get("annotations", {}), kind.index: str(index)}
        owner = {
            "apiVersion": kind.api_version,
            "kind": kind.name,
            "name": metadata["name"],
            "uid": metadata["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        spec = {"hostname": name.removesuffix("-abcde"), **template["spec"]}
        spec |= {"nodeName": NODE, "restartPolicy": "Never"}
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": labels,
                "annotations": annotations,
                "ownerReferences": [owner],
            },
            "spec": spec,
        }
        try:
            made = self._client.request("POST", f"/api/v1/namespaces/{self.namespace}/pods", body)
        except ApiError as error:
            if error.code != 409:
                raise
            return
        self._places[(metadata["uid"], index)] = (made["metadata"]["uid"], False)
        self.made.append(name)

    def _run_pod(self, pod: Object) -> None:
        phase, uid = pod["status"].get("phase"), pod["metadata"]["uid"]
        if pod["metadata"]["name"] in self.lost:
            return
        if phase == "Pending":
            if pod["metadata"]["name"].startswith(tuple(self.held)):
                return
            if pod["metadata"]["name"].startswith(tuple(self.roomless)):
                self._find_no_node(pod)
                return
            self._began[uid] = time.monotonic()
            self._places[(owner_of(pod), index_of(pod))] = (uid, True)
            state = {"running": {"startedAt": self.clock()}}
            self._pod_status(pod, "Running", state)
        elif phase == "Running":
            run = self._script_of(pod)
            began = self._began.setdefault(uid, time.monotonic())
            if not run.forever and time.monotonic() - began >= run.seconds:
                self._terminate(pod, run)

    def _find_no_node(self, pod: Object) -> None:
        if pod["status"].get("conditions"):
            return
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}/status"
        status = {"conditions": [no_room(self.clock())]}
        patch = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status}
        self._client.request("PATCH", path, patch, "application/merge-patch+json")

    def _script_of(self, pod: Object) -> Run:
        stage, attempt, node = self._who(pod)
        script = self.scripts.get(pod["metadata"]["labels"][LABEL_JOB], self.script)
        return script(stage, attempt, node)

    def _who(self, pod: Object) -> tuple[str, int, int]:
        labels = pod["metadata"]["labels"]
        return labels[LABEL_STAGE], int(labels.get(LABEL_ATTEMPT, 0)), index_of(pod)

    def _terminate(self, pod: Object, run: Run) -> None:
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
                "startedAt": self.clock(),
                "finishedAt": self.clock(),
                "message": json.dumps(report.to_json()),
            }
        }
        self._pod_status(pod, "Failed" if run.exit_code else "Succeeded", state)

    def _pod_status(self, pod: Object, phase: str, state: Object) -> None:
        container = pod["spec"]["containers"][0]
        address = self.address(pod["metadata"]["labels"][LABEL_JOB])
        status = {
            "phase": phase,
            "startTime": pod["status"].get("startTime") or self.clock(),
            "podIP": address,
            "podIPs": [{"ip": address}],
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
        self._client.request("PATCH", path, patch, "application/merge-patch+json")

    def _end_pod(self, pod: Object) -> None:
        """SIGTERM: the process saves and ends with 143; then the object goes."""
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}"
        if name in self.lost:
            return
        if pod["status"].get("phase") == "Running":
            stage, _, _ = self._who(pod)
            self._terminate(
                pod, Run(exit_code=143, step=30, checkpoint=30 if stage == "train" else None)
            )
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
        self._client.request(
            "DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", **options}
        )

    def _orphan(self, pods: list[Object]) -> None:
        for pod in pods:
            path = f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}"
            patch = {"metadata": {"uid": pod["metadata"]["uid"], "ownerReferences": None}}
            self._client.request("PATCH", path, patch, "application/merge-patch+json")

    def _drop_finalizers(self, kind: Kind, child: Object) -> None:
        patch = {"metadata": {"uid": child["metadata"]["uid"], "finalizers": None}}
        path = kind.path(self.namespace, child["metadata"]["name"])
        self._client.request("PATCH", path, patch, "application/merge-patch+json")

    def _finish(self, kind: Kind, child: Object, success: bool, phases: list[str]) -> None:
        at = self.clock()
        began = {"startTime": child.get("status", {}).get("startTime") or at}
        self._child_status(kind, child, {**began, **kind.ended(success, phases, at)})

    def _child_status(self, kind: Kind, child: Object, status: Object) -> None:
        path = kind.path(self.namespace, child["metadata"]["name"], "status")
        patch = {"metadata": {"uid": child["metadata"]["uid"]}, "status": status}
        self._client.request("PATCH", path, patch, "application/merge-patch+json")


_OWNED = ("configmaps", "services", "persistentvolumeclaims")
