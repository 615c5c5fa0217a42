"""A few objects in memory behind the paths of the API server.

It stands for the API server where a test is about the operator's own logic: versions, uids,
conflicts, preconditions, finalizers of foreground deletion, label selectors. It knows no schema,
no admission and no watch; ``tests/cluster`` has the real one.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from finetune_operator.answers import error_of
from finetune_operator.kube import Kube
from harness.control_plane import ApiError

_PATH = re.compile(
    r"^/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?$"
)
_KINDS = {
    "finetunejobs": "FineTuneJob",
    "finetuneprofiles": "FineTuneProfile",
    "namespaces": "Namespace",
    "pods": "Pod",
    "configmaps": "ConfigMap",
    "services": "Service",
    "persistentvolumeclaims": "PersistentVolumeClaim",
    "events": "Event",
    "jobs": "Job",
    "pytorchjobs": "PyTorchJob",
}
FOREGROUND = "foregroundDeletion"


class Crash(BaseException):
    """The operator is killed: nothing of it goes on."""


class MemoryApi:
    """Everything that is stored, and every write that was made."""

    def __init__(self, *, pytorch: bool = False) -> None:
        """Begin empty, with or without the kinds of the training operator."""
        self.pytorch = pytorch
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.writes: list[str] = []
        self.deleted: Callable[[dict[str, Any]], None] = lambda body: None
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)
        self._versions = itertools.count(1)

    def time(self) -> str:
        """Return the time as objects have it."""
        return self.clock().strftime("%Y-%m-%dT%H:%M:%SZ")

    def get(self, path: str) -> dict[str, Any]:
        """Read, as the harness's client does."""
        return self.request("GET", path)

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create, as the harness's client does."""
        return self.request("POST", path, body)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        query: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Answer a request; raises ApiError as the harness's client does."""
        del content_type
        match = _PATH.match(path)
        if match is None:
            return self._kinds(path)
        plural, name = match["plural"], match["name"] or ""
        namespace = match["namespace"] or ""
        if plural == "pytorchjobs" and not self.pytorch:
            raise ApiError(404, {"message": "the server could not find the requested resource"})
        body = copy.deepcopy(body)
        if method == "GET":
            found = self._read(plural, namespace, name, query or {})
        elif method == "POST":
            found = self._create(plural, namespace, body)
        elif method == "PUT":
            found = self._replace_status(plural, namespace, name, body)
        elif method == "PATCH":
            found = self._patch(plural, namespace, name, body, status=match["sub"] == "status")
        else:
            found = self._delete(plural, namespace, name, body or {})
        return copy.deepcopy(found)

    def _kinds(self, path: str) -> dict[str, Any]:
        if path == "/apis/kubeflow.org/v1" and self.pytorch:
            return {"resources": [{"name": "pytorchjobs"}]}
        if path == "/apis":
            return {"groups": [{"name": "kubeflow.org"}] if self.pytorch else []}
        raise ApiError(404, {"message": path})

    def _read(
        self, plural: str, namespace: str, name: str, query: dict[str, str]
    ) -> dict[str, Any]:
        if name:
            return self._there(plural, namespace, name)
        wanted = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
        uid = query.get("fieldSelector", "").partition("involvedObject.uid=")[2]
        found = [
            body
            for (kind, where, _), body in sorted(self.objects.items())
            if kind == plural
            and (not namespace or where == namespace)
            and wanted.items() <= (body["metadata"].get("labels") or {}).items()
            and (not uid or body["involvedObject"]["uid"] == uid)
        ]
        return {"items": found, "metadata": {}}

    def _create(self, plural: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        metadata = body["metadata"]
        key = (plural, namespace, metadata["name"])
        if key in self.objects:
            raise ApiError(409, {"message": f"{key} exists", "reason": "AlreadyExists"})
        number = next(self._versions)
        if namespace:
            metadata["namespace"] = namespace
        metadata |= {
            "uid": f"{number:08d}-0000-4000-8000-000000000000",
            "resourceVersion": str(number),
            "generation": 1,
            "creationTimestamp": self.time(),
        }
        body = {"kind": _KINDS[plural], **body}
        if plural in ("jobs", "pytorchjobs", "pods"):
            body.setdefault("status", {})
        if plural == "pods":
            body["status"]["phase"] = "Pending"
        self.objects[key] = body
        self.writes.append(f"create {plural} {metadata['name']}")
        return body

    def _replace_status(
        self, plural: str, namespace: str, name: str, body: dict[str, Any]
    ) -> dict[str, Any]:
        there = self._there(plural, namespace, name)
        if body["metadata"]["resourceVersion"] != there["metadata"]["resourceVersion"]:
            raise ApiError(409, {"message": "the object has been modified", "reason": "Conflict"})
        there["status"] = body["status"]
        self._touch(there)
        self.writes.append(f"status {plural} {name}")
        return there

    def _patch(
        self, plural: str, namespace: str, name: str, body: dict[str, Any], *, status: bool
    ) -> dict[str, Any]:
        there = self._there(plural, namespace, name)
        metadata = body.pop("metadata", {})
        if metadata.get("uid", there["metadata"]["uid"]) != there["metadata"]["uid"]:
            raise ApiError(409, {"message": "another uid"})
        if status:
            there["status"] = {**(there.get("status") or {}), **body["status"]}
        elif "spec" in body:
            there["spec"] |= body["spec"]
            there["metadata"]["generation"] += 1
        if "annotations" in metadata:
            there["metadata"].setdefault("annotations", {}).update(metadata["annotations"])
        self._touch(there)
        if "finalizers" in metadata:
            there["metadata"].pop("finalizers", None)
            if "deletionTimestamp" in there["metadata"]:
                self._remove(plural, namespace, name)
        return there

    def _delete(
        self, plural: str, namespace: str, name: str, options: dict[str, Any]
    ) -> dict[str, Any]:
        there = self._there(plural, namespace, name)
        wanted = (options.get("preconditions") or {}).get("uid", there["metadata"]["uid"])
        if wanted != there["metadata"]["uid"]:
            raise ApiError(409, {"message": "another uid", "reason": "Conflict"})
        graceful = plural == "pods" and options.get("gracePeriodSeconds") != 0
        self.writes.append(f"delete {plural} {name}")
        if options.get("propagationPolicy") == "Foreground" or graceful:
            there["metadata"].setdefault("deletionTimestamp", self.time())
            if not graceful:
                there["metadata"]["finalizers"] = [FOREGROUND]
            self._touch(there)
            return there
        self._remove(plural, namespace, name)
        return there

    def _remove(self, plural: str, namespace: str, name: str) -> None:
        self.deleted(self.objects.pop((plural, namespace, name)))

    def _there(self, plural: str, namespace: str, name: str) -> dict[str, Any]:
        found = self.objects.get((plural, namespace, name))
        if found is None:
            raise ApiError(404, {"message": f"{plural} {name} not found", "reason": "NotFound"})
        return found

    def _touch(self, body: dict[str, Any]) -> None:
        body["metadata"]["resourceVersion"] = str(next(self._versions))


class MemoryKube(Kube):
    """The operator's own client, whose requests go to the objects in memory."""

    def __init__(self, api: MemoryApi) -> None:
        """Send nothing anywhere."""
        super().__init__()
        self.api = api
        self.count = 0
        self.crash_at: tuple[str, int] | None = None
        """("before" or "after", number of the write from 1)."""
        self.refuse: Callable[[str, str], int | None] = lambda method, path: None
        """(method, path) -> the code with which to refuse it, or None."""

    async def _ask(self, method: str, path: str, body: Any = None, query: Any = None) -> Any:
        write = method != "GET"
        self.count += write
        if write and self.crash_at == ("before", self.count):
            raise Crash
        code = self.refuse(method, path)
        if code is not None:
            raise error_of(code, {"message": "refused by the test"}, "", None)
        try:
            plain = None if body is None else json.loads(json.dumps(body))
            answer = self.api.request(method, path, plain, query=dict(query or {}))
        except ApiError as error:
            raise error_of(error.code, dict(error.status), "", None) from None
        if write and self.crash_at == ("after", self.count):
            raise Crash
        return answer
