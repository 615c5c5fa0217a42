"""The jobs of a race: FineTuneJobs, and the PyTorchJobs that somebody would write by hand instead."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from harness.control_plane import Api
from harness.kwok import PREPARED
from harness.timed_watch import Creator

PYTORCH = "/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs"
_OURS = ("finetune.dev/", "app.kubernetes.io/managed-by")


def our_job(name: str, prepared: str, nodes: int) -> dict[str, Any]:
    """Return a FineTuneJob on accelerators, in a workspace that is there."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "profileRef": {"name": prepared},
            "model": {"uri": "pvc://models/tiny"},
            "dataset": {"train": [{"uri": "pvc://datasets/train.jsonl"}]},
            "method": {"lora": {}},
            "resources": {"nodes": nodes, "accelerator": {"perNode": 1}},
            "workspace": {"claimName": "shared"},
        },
    }


def bare_job(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a PyTorchJob of somebody's own, with the specification of one of ours."""
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name},
        "spec": spec,
    }


def by_hand(rendered: Mapping[str, Any]) -> dict[str, Any]:
    """Return the specification of a PyTorchJob that was rendered, without what makes it ours.

    Both sides then run the same pods: volumes, variables and security are those of a real job, and
    cost the API server, the scheduler and the nodes the same.
    """
    spec = dict(rendered["spec"])
    replicas = {}
    for role, replica in spec["pytorchReplicaSpecs"].items():
        template = dict(replica["template"])
        metadata = dict(template.get("metadata") or {})
        for name in ("labels", "annotations"):
            found = (metadata.get(name) or {}).items()
            metadata[name] = {key: value for key, value in found if not key.startswith(_OURS)}
        replicas[role] = {**replica, "template": {**template, "metadata": metadata}}
    return {**spec, "pytorchReplicaSpecs": replicas}


def make_profile(api: Api, name: str, prepared: str) -> str:
    """Make the profile whose jobs have prepared by then, or after so long; returns its name."""
    spec = {"platform": {"podAnnotations": {PREPARED: prepared}}}
    body = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneProfile"}
    api.create(
        "/apis/finetune.dev/v1alpha1/finetuneprofiles",
        {**body, "metadata": {"name": name}, "spec": spec},
    )
    return name


def create_all(api: Api, path: str, bodies: Sequence[dict[str, Any]], threads: int = 4) -> float:
    """Create objects over a few connections; returns when it began."""
    creators = [Creator(api) for _ in range(threads)]
    began = time.monotonic()

    def work(number: int) -> None:
        for body in bodies[number::threads]:
            creators[number].create(path, body)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    for creator in creators:
        creator.close()
    return began
