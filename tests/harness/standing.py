"""How the jobs of a namespace stand: what an upgrade of the operator must leave as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.audit import Request, requests
from harness.control_plane import Api
from harness.operator_driver import JOBS

COUNTED = ("attempt", "tries", "failures", "preemptions", "memoryHalvings")


@dataclass(frozen=True)
class Standing:
    """One job: what it is in, and what was counted of it."""

    phase: str
    child: str
    child_uid: str
    counted: tuple[int, ...]
    resumes: int
    pods: tuple[str, ...]
    """Uids of its pods."""
    resolved: str
    """Digest of what was accepted."""


def standings(api: Api, namespace: str) -> dict[str, Standing]:
    """Return how each job of a namespace stands, by name.

    Taken before and after the operator was replaced, two of them are to be equal: no job has
    restarted, and nothing was counted twice.
    """
    pods: dict[str, list[str]] = {}
    for pod in api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]:
        metadata = pod["metadata"]
        name = (metadata.get("labels") or {}).get("finetune.dev/job")
        if name:
            pods.setdefault(name, []).append(metadata["uid"])
    jobs = api.get(JOBS.format(namespace=namespace))["items"]
    names = {job["metadata"]["name"]: job.get("status") or {} for job in jobs}
    return {
        name: _standing(status, tuple(sorted(pods.get(name, ())))) for name, status in names.items()
    }


def _standing(status: dict[str, Any], pods: tuple[str, ...]) -> Standing:
    child = status.get("child") or {}
    return Standing(
        phase=status.get("phase", ""),
        child=child.get("name", ""),
        child_uid=child.get("uid", ""),
        counted=tuple(status.get(name) or 0 for name in COUNTED),
        resumes=len(status.get("resumes") or ()),
        pods=pods,
        resolved=(status.get("resolved") or {}).get("digest", ""),
    )


def made_or_removed(log: Path, user: str, since: Any) -> list[Request]:
    """Return what a user has created or deleted after a time; Events, which only tell, left out."""
    return [
        one
        for one in requests(log, user=user, since=since)
        if one.writes and one.verb not in ("update", "patch") and one.resource != "events"
    ]
