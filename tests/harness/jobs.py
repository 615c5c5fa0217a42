"""What users and administrators do to jobs in one namespace, and what they can see of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness.control_plane import Api, ApiError
from harness.operator_driver import JOBS, make_namespace, status_of
from harness.pod_player import PodPlayer
from harness.stage_config import SPEC, merged

Object = dict[str, Any]
MERGE = "application/merge-patch+json"
TOLD_OR_GONE = ([("Preempted", 30)], [("LostInfrastructure", 30)])
"""Why an attempt went on whose pods were told to go, or whose child was removed. Which of the two is a
matter of chance: whether a look falls between the end of a pod and what the watch tells of it."""
_ROOTS = {
    "finetunejobs": "/apis/finetune.dev/v1alpha1",
    "jobs": "/apis/batch/v1",
    "pytorchjobs": "/apis/kubeflow.org/v1",
}


def job_object(name: str, *, labels: dict[str, str] | None = None, **spec: Any) -> Object:
    """Return a job as a user creates it; ``spec`` is laid over the harness's."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": merged(SPEC, spec),
    }


def namespace_for(api: Api, test: str) -> str:
    """Create a namespace named after a test; returns its name."""
    return make_namespace(api, re.sub("[^a-z0-9]+", "-", test.lower())[-40:].strip("-"))


@dataclass(frozen=True)
class Jobs:
    """The jobs of one namespace, in the hands of somebody who has every right."""

    api: Api
    namespace: str

    def path(self, plural: str, name: str = "", subresource: str = "") -> str:
        """Return the address of one object, or of all of a kind."""
        parts = [f"{_ROOTS.get(plural, '/api/v1')}/namespaces/{self.namespace}/{plural}"]
        return "/".join([*parts, *(part for part in (name, subresource) if part)])

    def submit(self, name: str, *, labels: dict[str, str] | None = None, **spec: Any) -> str:
        """Create a job; ``spec`` is laid over the harness's. Returns its uid."""
        body = job_object(name, labels=labels, **spec)
        made = self.api.create(JOBS.format(namespace=self.namespace), body)
        return str(made["metadata"]["uid"])

    def change(self, plural: str, name: str, patch: Object, subresource: str = "") -> Object:
        """Merge a patch into an object."""
        return self.api.request("PATCH", self.path(plural, name, subresource), patch, MERGE)

    def delete(self, plural: str, name: str, propagation: str = "Background") -> None:
        """Delete an object."""
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        self.api.request("DELETE", self.path(plural, name), options)

    def find(self, plural: str, name: str) -> Object | None:
        """Return an object; None where there is none."""
        try:
            return self.api.get(self.path(plural, name))
        except ApiError as error:
            if error.code != 404:
                raise
            return None

    def names(self, plural: str) -> list[str]:
        """Return the names of all objects of a kind."""
        return sorted(one["metadata"]["name"] for one in self.api.get(self.path(plural))["items"])

    def status(self, name: str) -> Object:
        """Return the status of a job; empty before it has one."""
        return status_of(self.api, self.namespace, name)

    def phase(self, name: str) -> str:
        """Return the phase of a job; empty before it has one."""
        return str(self.status(name).get("phase") or "")

    def outcome(self, name: str) -> Object | None:
        """Return the status of a job that has ended."""
        status = self.status(name)
        return status if status.get("outcome") else None

    def condition(self, name: str, kind: str) -> tuple[str, str, str]:
        """Return status, reason and message of a condition; empty texts where there is none."""
        for one in self.status(name).get("conditions") or ():
            if one["type"] == kind:
                return one["status"], one["reason"], one.get("message", "")
        return "", "", ""

    def counted(self, name: str) -> tuple[str, int, int, int]:
        """Return outcome, attempts, failures and preemptions of a job."""
        status = self.status(name)
        attempt, failures, preemptions = (
            int(status.get(one, 0)) for one in ("attempt", "failures", "preemptions")
        )
        return str(status.get("outcome")), attempt, failures, preemptions

    def causes(self, name: str) -> list[tuple[str, int]]:
        """Return why the attempts after the first were needed, and the steps they began at."""
        resumes = self.status(name).get("resumes") or ()
        return [(one["cause"], one["fromStep"]) for one in resumes]

    def said(self, uid: str, reason: str) -> list[str]:
        """Return the messages of the Events of one job with one reason."""
        events = self.api.get(self.path("events"))["items"]
        return [
            one["message"]
            for one in events
            if one["involvedObject"]["uid"] == uid and one["reason"] == reason
        ]


def folder_of(name: str, uid: str) -> str:
    """Return the folder of a job in its workspace, after which its ConfigMaps are named."""
    return f"{name}-{uid.replace('-', '')[:8]}"


@contextmanager
def playing(player: PodPlayer) -> Iterator[PodPlayer]:
    """Let a player play for the length of a block; it must not have met an error."""
    player.start()
    try:
        yield player
    finally:
        player.stop()
        assert not player.errors, player.errors
