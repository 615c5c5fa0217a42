"""Files that a job left on a claim: where they lie, and the command with which their owner reads them.

This client reads no volume: nothing of a job runs any more that could be asked, and a pod that mounts
a claim is for its user to start, with rights of their own.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.source import parse_uri
from finetune_cli.cluster.jobs import ClusterJob

REPORT = "report.html"
METRICS = "reports/metrics.jsonl"


@dataclass(frozen=True)
class VolumeFile:
    """A file on a claim; ``newest_of``: it lies in the newest folder of this one."""

    claim: str
    path: str
    newest_of: bool = False

    @property
    def uri(self) -> str:
        """Where it lies."""
        folder, _, name = self.path.rpartition("/")
        path = f"{folder}/*/{name}" if self.newest_of else self.path
        return f"pvc://{self.claim}/{path}"

    @property
    def name(self) -> str:
        """Its own name."""
        return self.path.rpartition("/")[2]


def file_of(job: ClusterJob) -> VolumeFile | None:
    """Return the file that tells most of a job: its report, before there is one its metrics.

    None while no step can have been logged.
    """
    status = job.status
    if status.output is not None:
        try:
            output = parse_uri(status.output.uri)
        except ValueError:
            return None
        path = f"{output.path}/{REPORT}" if output.path else REPORT
        return VolumeFile(output.name, path) if output.scheme == "pvc" else None
    claim, _, folder = job.folder.removeprefix("pvc://").partition("/")
    failure = status.last_failure
    if status.outcome == "Failed" and failure is not None and failure.class_ == "GateNotMet":
        return VolumeFile(claim, f"{folder}/rejected/{REPORT}", newest_of=True)
    return VolumeFile(claim, f"{folder}/{METRICS}") if status.attempt else None


def command(job: ClusterJob, file: VolumeFile, options: Sequence[str] = ()) -> str:
    """Return the command that copies a file here, through a pod of the trainer's image.

    The pod passes restricted Pod Security, holds no token and mounts the claim read-only. It waits
    for a line of input: what a pod prints before kubectl has attached to it is lost. ``options``:
    those of kubectl that say which cluster.
    """
    name = f"{job.name}-report"
    mount = f"/claim/{file.path}"
    read = ["sh", "-c", 'read -r _; cat "$0"', mount]
    if file.newest_of:
        newest = 'read -r _; cat "$(ls -td "$0"/*/ | head -n 1)$1"'
        read = ["sh", "-c", newest, mount.rpartition("/")[0], file.name]
    words = ["kubectl", *options, "run", name, "--namespace", job.namespace]
    words += ["--image", job.status.trainer_image, "--restart", "Never", "--rm", "-i", "--quiet"]
    words += ["--override-type", "strategic", "--overrides", json.dumps(_pod(name, file.claim))]
    words += ["--command", "--", *read]
    return f"echo | {shlex.join(words)} > {job.name}-{file.name}"


def _pod(name: str, claim: str) -> dict[str, object]:
    return {
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": name,
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "claim", "mountPath": "/claim", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": claim}}],
        }
    }
