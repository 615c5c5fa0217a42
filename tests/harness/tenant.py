"""A team's namespace on a real node: restricted Pod Security, quota, limits, and volumes to look into."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.names import LABEL_JOB, Layout, workspace_claim, workspace_folder
from harness.access import Access, until
from harness.binaries import KUBECTL, binary
from harness.control_plane import PASSING, Api, ApiError
from harness.operator_driver import JOBS, status_of
from harness.stage_config import merged, write_rows

QUOTA = {
    "requests.cpu": "16",
    "limits.cpu": "128",
    "requests.memory": "64Gi",
    "limits.memory": "384Gi",
    "requests.nvidia.com/gpu": "8",
    "persistentvolumeclaims": "60",
    "pods": "60",
}
LIMITS: dict[str, Any] = {
    "type": "Container",
    "default": {"cpu": "1", "memory": "6Gi"},
    "defaultRequest": {"cpu": "50m", "memory": "1Gi"},
    "max": {"cpu": "8", "memory": "16Gi"},
}
"""What a pod that asks for nothing gets. One processor is one thread: with two for each of the pods
that share two, all would mostly wait for each other."""

TINY: dict[str, Any] = {
    "model": {"uri": "pvc://models/tiny"},
    "dataset": {
        "train": [{"uri": "pvc://datasets/train.jsonl"}],
        "maxLength": 64,
        "packing": False,
    },
    "method": {"lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
    "training": {
        "learningRate": 1e-3,
        "globalBatchSize": 4,
        "microBatchSize": 1,
        "loggingSteps": 1,
        "maxSteps": 60,
        "epochs": 1000,
    },
    "resources": {"accelerator": {"device": "cpu", "perNode": 0}},
    "checkpoint": {"gracePeriodSeconds": 20},
}
"""A job that a node without a GPU trains in seconds."""


def chats(count: int) -> list[dict[str, Any]]:
    """Return short conversations of one question and one answer."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is your name? {number}"},
                {"role": "assistant", "content": f"I am Otto {number}."},
            ]
        }
        for number in range(count)
    ]


@dataclass(frozen=True)
class Kept:
    """What a job left in its workspace, on this machine's disk."""

    root: Path

    @property
    def layout(self) -> Layout:
        """The paths in it."""
        return Layout(self.root)

    def progress(self) -> dict[str, Any]:
        """The newest progress; empty before there is one."""
        return self._json(self.layout.progress)

    def claim(self, number: int) -> dict[str, Any]:
        """One claim; empty where there is none."""
        return self._json(self.layout.claim(number))

    def end(self, claim: int, node: int = 0) -> dict[str, Any]:
        """What the supervisor of a node said at the end of a claim."""
        return self._json(self.layout.end_report(claim, node))

    def saved(self) -> list[str]:
        """Committed checkpoints: ``1/step-20``, in the order of claims and steps."""
        found = self.layout.checkpoints.glob("*/step-*/manifest.json")
        places = ((int(p.parts[-3]), int(p.parts[-2].removeprefix("step-"))) for p in found)
        return [f"{claim}/step-{step}" for claim, step in sorted(places)]

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the metrics, in order; one that a kill cut short is no line."""
        try:
            lines = self.layout.metrics.read_text(encoding="utf-8").split("\n")[:-1]
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            try:
                found.append(dict(json.loads(line)))
            except ValueError:
                continue
        return found

    def losses(self) -> dict[int, float]:
        """The loss of each logged step; of a step trained twice, the last time."""
        return {row["step"]: row["loss"] for row in self.metrics() if "loss" in row}

    def steps(self, claim: int) -> list[int]:
        """The steps that a claim logged."""
        return [row["step"] for row in self.metrics() if row["claim"] == claim and "loss" in row]

    def manifest(self, checkpoint: str) -> dict[str, Any]:
        """The manifest of a checkpoint (``1/step-20``)."""
        return self._json(self.layout.checkpoints / checkpoint / "manifest.json")

    def adapter(self) -> dict[str, str]:
        """SHA-256 by name of every file of weights of the published adapter."""
        manifest = self._json(self.layout.output / "manifest.json")
        return {
            entry["path"]: entry["sha256"]
            for entry in manifest["files"]
            if entry["path"].startswith("adapter/") and entry["path"].endswith(".safetensors")
        }

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}


@dataclass(frozen=True)
class Tenant:
    """One namespace of a running cluster."""

    cluster: Access
    namespace: str
    places: dict[str, Path] = field(default_factory=dict)
    """Of jobs, by name, once they are known: looks that are taken all the time ask for less."""

    @property
    def api(self) -> Api:
        """The administrator's client."""
        return self.cluster.api

    def claim(self, name: str) -> Path:
        """Make a claim whose volume is a folder of this machine; returns the folder."""
        folder = self.cluster.folder / "prepared" / self.namespace / name
        self.cluster.make_volume(self.namespace, name, folder)
        return folder

    def volume(self, claim: str) -> Path:
        """Return the folder of this machine that a bound claim stands for."""
        path = f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims/{claim}"
        name = self.api.get(path)["spec"]["volumeName"]
        return Path(self.api.get(f"/api/v1/persistentvolumes/{name}")["spec"]["local"]["path"])

    # --- jobs ------------------------------------------------------------------------------

    @property
    def jobs(self) -> str:
        """Path of the namespace's FineTuneJobs."""
        return JOBS.format(namespace=self.namespace)

    def start(self, name: str, spec: Mapping[str, Any], base: Mapping[str, Any] = TINY) -> None:
        """Create a job: ``spec`` over ``base``."""
        body = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name},
            "spec": merged(dict(base), dict(spec)),
        }
        self.api.create(self.jobs, body)

    def remove(self, name: str) -> None:
        """Delete a job, if it is there."""
        try:
            self.api.delete(f"{self.jobs}/{name}")
        except ApiError as error:
            if error.code != 404:
                raise

    def job(self, name: str) -> dict[str, Any]:
        """A job as it is stored."""
        return self.api.get(f"{self.jobs}/{name}")

    def status(self, name: str) -> dict[str, Any]:
        """Its status; empty before it has one."""
        return status_of(self.api, self.namespace, name)

    def conditions(self, name: str) -> dict[str, tuple[str, str, str]]:
        """(status, reason, message) by type."""
        found = self.status(name).get("conditions") or []
        return {one["type"]: (one["status"], one["reason"], one["message"]) for one in found}

    def kept(self, name: str) -> Kept:
        """What it left in its workspace; a name stands for one job of this namespace for ever."""
        if name not in self.places:
            uid = self.job(name)["metadata"]["uid"]
            folder = self.volume(workspace_claim(name)) / workspace_folder(name, uid)
            self.places[name] = folder
        return Kept(self.places[name])

    def pods(self, name: str) -> list[dict[str, Any]]:
        """Return the pods of a job that exist, by name."""
        selector = f"{LABEL_JOB}%3D{name}"
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={selector}"
        found = self.api.get(path)["items"]
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    def running(self, name: str, stage: str = "train") -> list[dict[str, Any]]:
        """Return its pods of a stage whose process runs and was not told to end."""
        return [
            pod
            for pod in self.pods(name)
            if pod["metadata"]["labels"]["finetune.dev/stage"] == stage
            and pod["status"].get("phase") == "Running"
            and "deletionTimestamp" not in pod["metadata"]
        ]

    def finished(self, name: str, timeout: float = 300.0) -> dict[str, Any]:
        """Wait until a job has ended and return its status."""

        def outcome() -> dict[str, Any] | None:
            status = self.status(name)
            return status if status.get("outcome") else None

        return dict(self.wait(outcome, f"job {name} has ended", timeout))

    # --- the rest --------------------------------------------------------------------------

    def wait(self, what: Callable[[], Any], words: str, timeout: float = 120.0) -> Any:
        """Ask until the answer is true and return it; fails with the state of the namespace."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                found = what()
            except ApiError as error:
                if error.code not in PASSING:
                    raise
                found = None
            except OSError:  # the API server is being restarted
                found = None
            if found:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout:.0f} s: {words}\n{self.describe()}")
            time.sleep(0.3)

    def kubectl(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl in the namespace."""
        command = [
            binary(KUBECTL),
            f"--kubeconfig={self.cluster.kubeconfig}",
            "-n",
            self.namespace,
            *words,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert not check or done.returncode == 0, f"kubectl {words}: {done.stdout}{done.stderr}"
        return done

    def describe(self) -> str:
        """Return what a person would look at first."""
        asked = [
            ("get", "ftjob", "-o", "wide"),
            ("get", "pods,pvc,jobs", "-o", "wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("get", "nodes", "-o", "custom-columns=NODE:.metadata.name,TAINTS:.spec.taints[*].key"),
        ]
        parts = [self.kubectl(*words, check=False).stdout[-6000:] for words in asked]
        log = self.cluster.folder / "kube-controller-manager.log"
        if log.is_file():  # who is evicted, and why nobody is
            lines = log.read_text(errors="replace").splitlines()
            told = [line for line in lines if "node_lifecycle" in line or "taint_eviction" in line]
            parts.append("\n".join(line[:240] for line in told[-20:]))
        return "\n".join(parts)


def make_tenant(
    cluster: Access, namespace: str, labels: Mapping[str, str] | None = None, *, cpu: str = "1"
) -> Tenant:
    """Make a namespace that enforces restricted Pod Security, a quota and limits.

    ``cpu`` is the limit of a pod that names none.
    """
    enforced = {
        f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")
    }
    api, inside = cluster.api, f"/api/v1/namespaces/{namespace}"
    body = {"metadata": {"name": namespace, "labels": {**enforced, **(labels or {})}}}
    api.create("/api/v1/namespaces", body)
    quota = {"metadata": {"name": "team"}, "spec": {"hard": QUOTA}}
    api.create(f"{inside}/resourcequotas", quota)
    limited = {**LIMITS, "default": {**LIMITS["default"], "cpu": cpu}}
    limits = {"metadata": {"name": "team"}, "spec": {"limits": [limited]}}
    api.create(f"{inside}/limitranges", limits)
    account = f"{inside}/serviceaccounts/default"
    until(lambda: api.get(account), f"namespace {namespace} had its service account")
    return Tenant(cluster, namespace)


def fill(tenant: Tenant, model: Path, rows: int = 40) -> None:
    """Make the claims ``models`` and ``datasets`` of ``TINY`` with a model and rows in them."""
    models = tenant.claim("models")
    shutil.copytree(model, models / "tiny")
    make_readable(models)
    write_rows(tenant.claim("datasets") / "train.jsonl", chats(rows))


def make_readable(folder: Path) -> None:
    """Let every user read files: claims that are mounted read-only are given to no group."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))


def processes_of(pod: Mapping[str, Any]) -> list[int]:
    """Return the processes of a pod's containers on this machine, the first one first.

    The sandbox's own process is left out.
    """
    uid = str(pod["metadata"]["uid"])
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            groups = (folder / "cgroup").read_text()
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if f"pod{uid}" in groups and words and not words.startswith(b"/pause"):
            found.append(int(folder.name))
    return sorted(found)
