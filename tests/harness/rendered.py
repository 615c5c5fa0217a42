"""Configurations of all stages for renderers, and what every rendered object has to keep to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from finetune_api.checkpoint import CheckpointRef
from finetune_api.job import JobSpec
from finetune_api.resolved import Attempt, Choices, ResolvedJob, StageConfig
from finetune_operator.render.config import stage_config
from harness.pod_security import containers, violations

UID = "8c7f5e0a-4b1d-4c59-9e55-0d2f6a1b3c4d"
IMAGE = "registry.example/finetune-trainer@sha256:" + "a" * 64
DIGEST = "sha256:" + "b" * 64
CHOICES = Choices(
    fingerprint=DIGEST,
    model_path="model/0123456789abcdef",
    model_digest="sha256:" + "c" * 64,
    tokenizer_digest="sha256:" + "d" * 64,
    train_sequences=1000,
    packing=True,
    global_batch_size=64,
    micro_batch_size=4,
    micro_batch_chosen=True,
    steps_per_epoch=16,
    total_steps=48,
)
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def job_of(spec: dict[str, Any] | JobSpec, name: str = "support-bot") -> ResolvedJob:
    """Return a resolved job; ``spec`` is complete."""
    parsed = spec if isinstance(spec, JobSpec) else JobSpec.model_validate(spec)
    return ResolvedJob(name=name, namespace="team-a", uid=UID, trainer_image=IMAGE, spec=parsed)


def attempt_config(job: ResolvedJob, number: int = 1, *, resumes: bool = False) -> StageConfig:
    """Return the configuration of an attempt."""
    known = CheckpointRef(step=480, path="checkpoints/1/step-480", digest=DIGEST)
    return stage_config(
        job,
        "train",
        CHOICES,
        Attempt(
            number=number,
            nodes=job.spec.resources.nodes,
            processes_per_node=job.spec.resources.processes_per_node,
            micro_batch_size=4,
            known=known if resumes else None,
        ),
    )


def templates(objects: tuple[dict[str, Any], ...]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield (pod template, number of pods) of everything that makes pods."""
    for one in objects:
        if one["kind"] == "Job":
            yield one["spec"]["template"], one["spec"]["parallelism"]
        elif one["kind"] == "PyTorchJob":
            for replica in one["spec"]["pytorchReplicaSpecs"].values():
                template = replica["template"]
                # As the controller makes its pods: the replica's policy counts.
                spec = {**template["spec"], "restartPolicy": replica["restartPolicy"]}
                yield {**template, "spec": spec}, replica["replicas"]


def faults(objects: tuple[dict[str, Any], ...], namespace: str = "team-a") -> list[str]:
    """Return everything that no object of ours may be, whatever a user or a profile says."""
    found = []
    for one in objects:
        metadata = one["metadata"]
        name = metadata["name"]
        if metadata["namespace"] != namespace:
            found.append(f"another namespace: {metadata['namespace']}")
        if not DNS_LABEL.fullmatch(name):
            found.append(f"name: {name}")
        found += [f"label {k}={v}" for k, v in metadata["labels"].items() if not _label(v)]
        for owner in metadata.get("ownerReferences", []):
            if owner["controller"] is not True or owner["blockOwnerDeletion"] is not False:
                found.append("owner")
        for longest in _names_made_of(one):
            if not DNS_LABEL.fullmatch(longest):
                found.append(f"name of a pod or Service: {longest}")
    for template, _ in templates(objects):
        found += [*violations(template), *_beyond_restricted(template)]
    if found_namespaces := _namespaces(objects) - {namespace}:
        found.append(f"namespaces: {found_namespaces}")
    json.dumps(objects, allow_nan=False)
    return found


def _names_made_of(one: dict[str, Any]) -> list[str]:
    name, spec = one["metadata"]["name"], one.get("spec", {})
    if one["kind"] == "PyTorchJob":
        last = spec["pytorchReplicaSpecs"]["Worker"]["replicas"] - 1
        return [f"{name}-worker-{last}"]
    if one["kind"] == "Job":
        # The host name; that of the object is cut by the controller where it is too long.
        return [f"{name}-{spec['completions'] - 1}"]
    return []


def _beyond_restricted(template: dict[str, Any]) -> Iterator[str]:
    """What we promise beside the standard."""
    spec = template["spec"]
    told = template["metadata"]["annotations"]
    if sum(len(key) + len(text.encode()) for key, text in told.items()) > 256 * 1024:
        yield "annotations are too long"
    if spec.get("automountServiceAccountToken") is not False:
        yield "API token"
    if spec.get("enableServiceLinks") is not False:
        yield "service links"
    if spec["restartPolicy"] != "Never":
        yield "restart policy"
    if spec["securityContext"].get("runAsUser", 1) < 1:
        yield "user"
    claims = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if _is_claim(v)]
    if len(claims) != len(set(claims)):
        yield "one claim, two volumes: the kubelet would wait for ever"
    for volume in spec["volumes"]:
        if not DNS_LABEL.fullmatch(volume["name"]):
            yield f"volume name {volume['name']}"
        for source in volume.get("projected", {}).get("sources", []):
            if set(source) - {"downwardAPI", "secret"}:
                yield f"projected {set(source)}"
            for item in next(iter(source.values()))["items"]:
                parts = item["path"].split("/")
                if {"", ".", ".."} & set(parts) or item["path"].startswith(".."):
                    yield f"path {item['path']}"
    for place, container in containers(spec):
        if container["securityContext"].get("readOnlyRootFilesystem") is not True:
            yield f"writable root: {place}"
        if place != "containers[0]" or container["command"] != ["finetune-trainer"]:
            yield f"another container or command: {place}"
        names = [variable["name"] for variable in container["env"]]
        if len(names) != len(set(names)):
            yield "a variable twice"
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        if len(paths) != len(set(paths)):
            yield "a path mounted twice"
        known = {volume["name"] for volume in spec["volumes"]}
        if {mount["name"] for mount in container["volumeMounts"]} - known:
            yield "a mount without a volume"
    labels = template["metadata"]["labels"]
    yield from (f"label {k}={v}" for k, v in labels.items() if not _label(v))


def _is_claim(volume: dict[str, Any]) -> bool:
    return "persistentVolumeClaim" in volume


def _label(value: str) -> bool:
    return bool(LABEL_VALUE.fullmatch(value))


def _namespaces(data: Any) -> set[Any]:
    if isinstance(data, dict):
        here = {data["namespace"]} if isinstance(data.get("namespace"), str) else set()
        return here.union(*map(_namespaces, data.values()))
    return set().union(*map(_namespaces, data)) if isinstance(data, list | tuple) else set()
