"""What tests and commands do with a running cluster, as its administrator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.binaries import HELM, KUBECTL, binary
from harness.commands import run
from harness.control_plane import Api, until
from harness.folder_provisioner import PREPARED, folder_volume
from harness.node import GPU, NAME


@dataclass
class Access:
    """A cluster seen through its API."""

    api: Api
    kubeconfig: Path
    folder: Path
    """Everything of this cluster's; gone when it ends."""

    def kubectl(self, *words: str | Path, text: str | None = None) -> str:
        """Run kubectl; ``text`` is its standard input."""
        return run(binary(KUBECTL), "--kubeconfig", self.kubeconfig, *words, text=text)

    def helm(self, *words: str | Path) -> str:
        """Run helm; what it remembers lies in the cluster's folder."""
        own = [f"HELM_{name}_HOME={self.folder / 'helm'}" for name in ("CACHE", "CONFIG", "DATA")]
        environment = [*own, f"KUBECONFIG={self.kubeconfig}", f"HOME={self.folder}"]
        return run("env", *environment, binary(HELM), *words, timeout=600)

    def pod_logs(self, namespace: str, pod: str, container: str | None = None) -> str:
        """Return what a pod's container has said."""
        words = ["--container", container] if container else []
        return self.kubectl("logs", "--namespace", namespace, pod, *words)

    def make_volume(
        self,
        namespace: str,
        claim: str,
        path: Path,
        size: str = "10Gi",
        modes: Sequence[str] = ("ReadWriteMany",),
    ) -> None:
        """Make a claim that is bound to a folder of this machine; ``fsGroup`` applies to it."""
        path.mkdir(parents=True, exist_ok=True)
        name = f"{namespace}-{claim}"
        reference = {"namespace": namespace, "name": claim}
        volume = folder_volume(name, path, size, modes, PREPARED, reference, reclaim="Retain")
        self.api.create("/api/v1/persistentvolumes", volume)
        wanted = {
            "metadata": {"name": claim},
            "spec": {
                "accessModes": list(modes),
                "storageClassName": PREPARED,
                "volumeName": name,
                "resources": {"requests": {"storage": size}},
            },
        }
        claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
        self.api.create(claims, wanted)
        until(lambda: self._bound(f"{claims}/{claim}"), f"claim {claim} was bound")

    def _bound(self, path: str) -> bool:
        return bool(self.api.get(path).get("status", {}).get("phase") == "Bound")

    def node(self) -> dict[str, Any]:
        """Return the node."""
        return self.api.get(f"/api/v1/nodes/{NAME}")

    def node_ready(self) -> dict[str, Any]:
        """Return the node's condition Ready: its status is True, False or Unknown."""
        found = self.node().get("status", {}).get("conditions") or []
        return next((dict(one) for one in found if one["type"] == "Ready"), {})

    def wait_node_ready(self, since: datetime | None = None, timeout: float = 60.0) -> None:
        """Wait until the kubelet itself said that the node is Ready, not before ``since``."""

        def ready() -> bool:
            condition = self.node_ready()
            if condition.get("status") != "True":
                return False
            heard = datetime.fromisoformat(condition["lastHeartbeatTime"])
            return since is None or heard >= since.replace(microsecond=0)

        until(ready, "the node was Ready", timeout)

    def wait_node_lost(self, timeout: float = 90.0) -> None:
        """Wait until the node is no longer Ready."""
        until(lambda: self.node_ready().get("status") != "True", "the node was NotReady", timeout)

    def set_gpus(self, count: int) -> None:
        """Say in the node's status that it has so many GPUs."""
        key = GPU.replace("/", "~1")
        change = [
            {"op": "add", "path": f"/status/{part}/{key}", "value": str(count)}
            for part in ("capacity", "allocatable")
        ]
        self._patch_node("/status", change)

    def add_taint(self, key: str, value: str = "", effect: str = "NoSchedule") -> None:
        """Taint the node."""
        taint = {"key": key, "value": value, "effect": effect}
        self._set_taints([*self._taints_but(key, effect), taint])

    def remove_taint(self, key: str, effect: str | None = None) -> None:
        """Remove a taint of the node, or all with its key."""
        self._set_taints(self._taints_but(key, effect))

    def _taints_but(self, key: str, effect: str | None) -> list[dict[str, Any]]:
        return [
            taint
            for taint in self.node()["spec"].get("taints", [])
            if taint["key"] != key or (effect and taint["effect"] != effect)
        ]

    def _set_taints(self, taints: list[dict[str, Any]]) -> None:
        self._patch_node("", [{"op": "add", "path": "/spec/taints", "value": taints}])

    def _patch_node(self, part: str, change: list[dict[str, Any]]) -> None:
        path = f"/api/v1/nodes/{NAME}{part}"
        self.api.request("PATCH", path, change, "application/json-patch+json")

    def secure_namespace(self, name: str) -> str:
        """Create a namespace that enforces restricted Pod Security; returns its name."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        until(
            lambda: self.api.get(f"/api/v1/namespaces/{name}/serviceaccounts/default"),
            f"namespace {name} had its service account",
        )
        return name


def now() -> datetime:
    """Return the time as the API server writes it."""
    return datetime.now(UTC)


def search_path() -> str:
    """Return a PATH on which kubectl and helm of this cluster come first."""
    folders = [str(binary(name).parent) for name in (KUBECTL, HELM)]
    return os.pathsep.join([*folders, os.environ.get("PATH", "")])
