"""Volumes that are folders of this machine: prepared ones, and ones made for a claim.

A cluster's storage system makes volumes as claims ask for them. Here a thread does it, in the way
of the external provisioners: once the scheduler has chosen the node, a folder and a volume.
"""

from __future__ import annotations

import http.client
import shutil
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.control_plane import Api, ApiError
from harness.node import NAME

PREPARED = "local"
"""Storage class of volumes that were made before their claim."""
ON_DEMAND = "finetune-local"
"""Storage class whose volumes are made for a claim; the cluster's default."""
_PROVISIONER = "finetune.local/folder"
_VOLUMES = "/api/v1/persistentvolumes"
KEEPER = "control-plane"
"""A node object without a kubelet, kept Ready. Where every node of a cluster is lost the
controller manager evicts nobody, so that the loss of the one real node would go unnoticed."""
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


def folder_volume(
    name: str,
    path: Path,
    size: str,
    modes: Sequence[str],
    storage_class: str,
    claim: Mapping[str, str],
    reclaim: str,
) -> dict[str, Any]:
    """Return a volume for one claim; of kind ``local``, since ``hostPath`` ignores fsGroup."""
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": list(modes),
            "persistentVolumeReclaimPolicy": reclaim,
            "storageClassName": storage_class,
            "local": {"path": str(path)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claim},
        },
    }


def make_storage_classes(api: Api) -> None:
    """Make both storage classes."""
    path = "/apis/storage.k8s.io/v1/storageclasses"
    waits = {"volumeBindingMode": "WaitForFirstConsumer"}
    prepared = {"metadata": {"name": PREPARED}, "provisioner": "kubernetes.io/no-provisioner"}
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    api.create(path, {**prepared, **waits})
    on_demand = {
        "metadata": {"name": ON_DEMAND, "annotations": default},
        "provisioner": _PROVISIONER,
        "reclaimPolicy": "Delete",
        "allowVolumeExpansion": True,
    }
    api.create(path, {**on_demand, **waits})


def make_keeper(api: Api) -> None:
    """Make the node object that is always Ready; nothing is scheduled there."""
    taint = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
    labels = {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/hostname": KEEPER}
    spec = {"taints": [taint], "unschedulable": True}
    api.create("/api/v1/nodes", {"metadata": {"name": KEEPER, "labels": labels}, "spec": spec})
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KeptReady",
        "message": "an object without a kubelet, so that the cluster has a node that is not lost",
        "lastHeartbeatTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    change = [{"op": "add", "path": "/status/conditions", "value": [ready]}]
    api.request("PATCH", f"/api/v1/nodes/{KEEPER}/status", change, "application/json-patch+json")
    api.create(_LEASES, _lease())


def _lease() -> dict[str, Any]:
    renewed = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": KEEPER, "leaseDurationSeconds": 40, "renewTime": renewed}
    return {"metadata": {"name": KEEPER}, "spec": spec}


@dataclass
class FolderProvisioner:
    """Two threads, with an identity of their own so that the audit log tells them apart.

    One keeps the keeper ready, and waits for nothing that is done to volumes.
    """

    api: Api
    folder: Path
    _ended: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin."""
        for name, work, every in (
            ("folder-provisioner", self._serve, 0.5),
            ("keeper-lease", self._renew, 2.0),
        ):
            thread = threading.Thread(
                target=self._again, args=(work, every), daemon=True, name=name
            )
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End; volumes stay."""
        self._ended.set()
        for thread in self._threads:
            thread.join(30)

    def _again(self, work: Callable[[], None], every: float) -> None:
        while not self._ended.wait(every):
            try:
                work()
            except (ApiError, OSError, http.client.HTTPException):
                continue  # stopped by a test, or another wrote first: the next look sees it
            except Exception:
                traceback.print_exc()  # a cluster whose keeper is not ready evicts nobody

    def _renew(self) -> None:
        spec = {"spec": _lease()["spec"]}
        self.api.request("PATCH", f"{_LEASES}/{KEEPER}", spec, "application/merge-patch+json")

    def _serve(self) -> None:
        self._serve_claims()
        self._remove_released()

    def _serve_claims(self) -> None:
        for claim in self._list("/api/v1/persistentvolumeclaims"):
            if claim["spec"].get("storageClassName") != ON_DEMAND:
                continue
            annotations = claim["metadata"].get("annotations") or {}
            bound = claim["spec"].get("volumeName")
            if bound:
                self._grow(claim, bound)
            elif annotations.get("volume.kubernetes.io/selected-node") == NAME:
                self._provide(claim)

    def _provide(self, claim: Mapping[str, Any]) -> None:
        about, spec = claim["metadata"], claim["spec"]
        name = f"pvc-{about['uid']}"
        path = self.folder / f"{about['namespace']}-{about['name']}-{about['uid'][:8]}"
        path.mkdir(parents=True, exist_ok=True)
        size = spec["resources"]["requests"]["storage"]
        reference = {key: about[key] for key in ("namespace", "name", "uid")}
        volume = folder_volume(
            name, path, size, spec["accessModes"], ON_DEMAND, reference, "Delete"
        )
        volume["metadata"]["annotations"] = {"pv.kubernetes.io/provisioned-by": _PROVISIONER}
        self.api.create(_VOLUMES, volume)

    def _grow(self, claim: Mapping[str, Any], volume: str) -> None:
        about, wanted = claim["metadata"], claim["spec"]["resources"]["requests"]["storage"]
        has = (claim.get("status", {}).get("capacity") or {}).get("storage")
        if has in (None, wanted):
            return
        merge = "application/merge-patch+json"
        grown = {"capacity": {"storage": wanted}}
        self.api.request("PATCH", f"{_VOLUMES}/{volume}", {"spec": grown}, merge)
        path = f"/api/v1/namespaces/{about['namespace']}/persistentvolumeclaims/{about['name']}"
        self.api.request("PATCH", f"{path}/status", {"status": grown}, merge)

    def _remove_released(self) -> None:
        for volume in self._list(_VOLUMES):
            of_class = volume["spec"].get("storageClassName") == ON_DEMAND
            if of_class and volume.get("status", {}).get("phase") == "Released":
                shutil.rmtree(volume["spec"]["local"]["path"], ignore_errors=True)
                self.api.delete(f"{_VOLUMES}/{volume['metadata']['name']}")

    def _list(self, path: str) -> list[dict[str, Any]]:
        return list(self.api.get(f"{path}?resourceVersion=0")["items"])


def provisioner(api: Api, identity: Any, folder: Path) -> FolderProvisioner:
    """Return the provisioner, speaking as ``identity``."""
    return FolderProvisioner(replace(api, identity=identity), folder)
