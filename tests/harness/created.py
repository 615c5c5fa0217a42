"""What was created, and what its pods asked for: from the bodies in the API server's audit log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GPU = "nvidia.com/gpu"
MAKES_PODS = {"pods": "", "jobs": "batch", "pytorchjobs": "kubeflow.org"}
"""Resource to group of everything that is a pod or becomes one here."""

POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "omitManagedFields": True,
    "rules": [
        # The answer holds what admission had put into the object, too.
        {
            "level": "RequestResponse",
            "verbs": ["create"],
            "resources": [
                {"group": group, "resources": [name]} for name, group in MAKES_PODS.items()
            ],
        },
        {"level": "None", "verbs": ["get", "list", "watch"]},
        {"level": "Metadata"},
    ],
}
"""The least that the questions of this module need."""


@dataclass(frozen=True)
class Created:
    """One object that the API server has stored."""

    resource: str
    namespace: str
    name: str
    user: str
    body: Mapping[str, Any]

    @property
    def gpus(self) -> int:
        """What the pods of one replica ask for together."""
        assert self.body, f"the audit log does not hold what {self.resource} were created as"
        return sum(_asked(spec) for spec in _pod_specs(self.body))


def created(log: Path, namespace: str) -> list[Created]:
    """Return every pod, Job and PyTorchJob that was ever created in a namespace, in order."""
    rotated = sorted(log.parent.glob(f"{log.stem}-*{log.suffix}"))
    found: list[Created] = []
    for path in [*rotated, log]:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):  # else it is still being written
                    found += _created(json.loads(line), namespace)
    return found


def _created(event: Mapping[str, Any], namespace: str) -> Iterator[Created]:
    ref = event.get("objectRef") or {}
    resource, group = ref.get("resource"), ref.get("apiGroup", "")
    if event["verb"] != "create" or event["stage"] != "ResponseComplete" or "subresource" in ref:
        return
    if resource not in MAKES_PODS or group != MAKES_PODS[resource]:
        return
    if ref.get("namespace") != namespace or "dryRun=" in event["requestURI"]:
        return
    if event["responseStatus"]["code"] >= 300:
        return
    body = event.get("responseObject") or event.get("requestObject") or {}
    about = body.get("metadata") or {}
    name = about.get("name") or ref.get("name") or about.get("generateName", "")
    yield Created(resource, namespace, name, event["user"]["username"], body)


def _pod_specs(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    spec = body["spec"]
    if "containers" in spec:
        yield spec
    if "template" in spec:
        yield spec["template"]["spec"]
    for replica in spec.get("pytorchReplicaSpecs", {}).values():
        yield replica["template"]["spec"]


def _asked(spec: Mapping[str, Any]) -> int:
    total = 0
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        asked = container.get("resources", {})
        both = {**asked.get("limits", {}), **asked.get("requests", {})}
        total += int(both.get(GPU, 0))
    return total
