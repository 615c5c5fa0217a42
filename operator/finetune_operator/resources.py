"""The kinds that the operator reads and writes, and where the API server keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from finetune_api import GROUP


@dataclass(frozen=True)
class Resource:
    """A kind of object as its address needs it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As an object holds it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        """Path of the group and version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Return the path of an object, or of the collection."""
        parts = [self.root]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        parts += [quote(part, safe="") for part in (name, subresource) if part]
        return "/".join(parts)


FINETUNE_JOBS = Resource(GROUP, "v1alpha1", "finetunejobs", "FineTuneJob")
PROFILES = Resource(GROUP, "v1alpha1", "finetuneprofiles", "FineTuneProfile", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
PODS = Resource("", "v1", "pods", "Pod")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
SERVICES = Resource("", "v1", "services", "Service")
CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
EVENTS = Resource("", "v1", "events", "Event")
BATCH_JOBS = Resource("batch", "v1", "jobs", "Job")
PYTORCH_JOBS = Resource("kubeflow.org", "v1", "pytorchjobs", "PyTorchJob")
RESOURCES = {
    (resource.api_version, resource.kind): resource
    for resource in (
        FINETUNE_JOBS,
        PROFILES,
        NAMESPACES,
        PODS,
        CONFIG_MAPS,
        SERVICES,
        CLAIMS,
        EVENTS,
        BATCH_JOBS,
        PYTORCH_JOBS,
    )
}


def resource_of(body: Mapping[str, Any]) -> Resource:
    """Return where an object belongs; raises ``KeyError`` for a kind that we never write."""
    return RESOURCES[(body["apiVersion"], body["kind"])]
