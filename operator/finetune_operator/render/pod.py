"""The only pod template: whatever runs for a job is made here, and secured last."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune_api import GROUP
from finetune_api.document import canonical
from finetune_api.job.resources import CpuResources, Toleration
from finetune_api.names import CONFIG_PATH, PROGRESS_PORT, TERMINATION_LOG
from finetune_api.resolved import ResolvedJob, Stage, StageConfig
from finetune_operator.render import Object, claims, environment, owner
from finetune_operator.render.placement import Placement
from finetune_operator.render.security import CONFINEMENT, secured

CONTAINER = "trainer"
FOLDER, CONFIG_FILE = CONFIG_PATH.rsplit("/", 1)
ANNOTATION_CONFIG = f"{GROUP}/config"
"""Of each pod: what its processes are told, as JSON."""
SECRETS_FOLDER = "secrets"
"""Below ``FOLDER``: ``secrets/<name>/<key>``, as the trainer reads them."""
SCRATCH = "ephemeral-storage"
"""What every pod takes on its node: the emptyDir that it writes to, and its log."""
GRACE_SLACK = 30
"""Seconds beyond the job's grace period until the kubelet kills: less than the operator waits."""
CPU_STAGE_GRACE = 30
AWAY = 60
"""Seconds for which a node may be unreachable before its pods are given up."""
ZONE = "topology.kubernetes.io/zone"

PEACE_LABELS = {"sidecar.istio.io/inject": "false"}
PEACE_ANNOTATIONS = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
    "linkerd.io/inject": "disabled",
    "sidecar.istio.io/inject": "false",
}
"""They keep sidecars and node consolidation away; the profile may say otherwise."""
RESERVED = (
    "finetune.dev/",
    "app.kubernetes.io/managed-by",
    "training.kubeflow.org/",
    "batch.kubernetes.io/",
    "kueue.x-k8s.io/",
    "kubernetes.io/",
    "job-name",
    "controller-uid",
)
"""Keys by which we, controllers and queues find or change pods; no profile sets them."""


@dataclass(frozen=True)
class Run:
    """One child of a job, and what its backend alone knows of its pods."""

    config: StageConfig
    number: int
    """Of the attempt, or of the try of preparation or publishing; from 1."""
    child: str
    container: str = CONTAINER
    gang: list[Object] = field(default_factory=list)
    ports: list[Object] = field(default_factory=list)


def template(run: Run, placement: Placement) -> Object:
    """Return the pod template of a child."""
    job, stage, platform = run.config.job, run.config.stage, placement.platform
    volumes, mounts = claims.volumes(job, stage)
    volumes += [_settings(run), *_scratch(job, stage)]
    mounts += [
        {"name": "settings", "mountPath": FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": environment.TMP},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
    ]
    container: Object = {
        "name": run.container,
        "image": job.trainer_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["finetune-trainer"],
        "args": [stage, "--config", CONFIG_PATH, "--config-digest", run.config.digest],
        "env": environment.variables(job, stage, platform, run.gang),
        "ports": run.ports,
        "resources": resources(job, stage, placement),
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }
    spec: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace(job, stage),
        "tolerations": _tolerations(job.spec.resources.tolerations or []),
        "containers": [container],
        "volumes": volumes,
        **_where(job, stage, placement),
    }
    if job.spec.resources.priority_class_name is not None:
        spec["priorityClassName"] = job.spec.resources.priority_class_name
    if platform.runtime_class_name is not None and stage == "train":
        spec["runtimeClassName"] = platform.runtime_class_name
    if platform.scheduler_name is not None:
        spec["schedulerName"] = platform.scheduler_name
    if platform.service_account_name is not None:
        spec["serviceAccountName"] = platform.service_account_name
    if platform.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in platform.image_pull_secrets]
    return secured({"metadata": _metadata(run, placement), "spec": spec}, platform.pod_security)


def grace(job: ResolvedJob, stage: Stage) -> int:
    """Return the seconds that the kubelet gives a pod to end."""
    if stage != "train":
        return CPU_STAGE_GRACE
    return job.spec.checkpoint.grace_period_seconds + GRACE_SLACK


def train_ports() -> list[Object]:
    """Return the port at which rank 0 tells its progress."""
    return [{"name": "progress", "containerPort": PROGRESS_PORT, "protocol": "TCP"}]


def resources(job: ResolvedJob, stage: Stage, placement: Placement) -> Object:
    """Return requests and limits, which are equal.

    Equal memory means that a pod is killed for its own use alone and not for its neighbours'; a
    limit of CPU beside its request is what quotas and limit ranges ask for. Only training asks for
    accelerators and for what the profile adds, but for the scratch that every pod has.
    """
    wanted, extra = job.spec.resources, placement.platform.extra_resources or {}
    asked = {name: size for name, size in extra.items() if stage == "train" or name == SCRATCH}
    if stage == "train":
        if wanted.accelerator.per_node:
            asked[wanted.accelerator.resource] = str(wanted.accelerator.per_node)
        asked |= _cpu_and_memory(CpuResources(cpu=wanted.cpu, memory=wanted.memory))
    else:
        own = wanted.preparation if stage == "prepare" else wanted.publishing
        asked |= _cpu_and_memory(own or CpuResources())
    return {"requests": asked, "limits": dict(asked)} if asked else {}


def _cpu_and_memory(asked: CpuResources) -> dict[str, str]:
    named = {"cpu": asked.cpu, "memory": asked.memory}
    return {name: value for name, value in named.items() if value is not None}


def _metadata(run: Run, placement: Placement) -> Object:
    platform = placement.platform
    labels = {**PEACE_LABELS, **_free(platform.pod_labels or {})}
    annotations = {**PEACE_ANNOTATIONS, **_free(platform.pod_annotations or {})}
    labels |= owner.labels(run.config.job, run.config.stage, run.number)
    annotations[ANNOTATION_CONFIG] = canonical(run.config.to_json()).decode()
    return {"labels": labels, "annotations": annotations}


def _free(words: dict[str, str]) -> dict[str, str]:
    return {
        key: value for key, value in words.items() if not key.startswith((*RESERVED, *CONFINEMENT))
    }


def _settings(run: Run) -> Object:
    """The stage's configuration, and as files beside it the secrets that the stage needs.

    The configuration travels in the pod: nothing else has to be made, kept or removed with it. Its
    digest in the arguments, which nobody can change, tells the trainer that it is the one it was
    made with.
    """
    path = f"metadata.annotations['{ANNOTATION_CONFIG}']"
    told = {"path": CONFIG_FILE, "fieldRef": {"apiVersion": "v1", "fieldPath": path}}
    sources: list[Object] = [{"downwardAPI": {"items": [told]}}]
    for ref in claims.secrets(run.config.job.spec, run.config.stage):
        path = f"{SECRETS_FOLDER}/{ref.name}/{ref.key}"
        sources.append({"secret": {"name": ref.name, "items": [{"key": ref.key, "path": path}]}})
    return {"name": "settings", "projected": {"defaultMode": 0o440, "sources": sources}}


def _scratch(job: ResolvedJob, stage: Stage) -> list[Object]:
    wanted = job.spec.resources
    with_accelerator = wanted.accelerator.per_node > 0 and wanted.accelerator.device != "cpu"
    size = "16Gi" if stage == "train" and with_accelerator else "1Gi"
    if stage == "train" and wanted.shared_memory is not None:
        size = wanted.shared_memory
    return [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}},
    ]


def _tolerations(wanted: list[Toleration]) -> list[Object]:
    """The user's, and the two by which a node that is gone is given up soon."""
    made: list[Object] = []
    for one in wanted:
        if one.key.startswith("node.kubernetes.io/"):
            continue
        toleration: Object = {"key": one.key, "operator": one.operator}
        if one.operator == "Equal":
            toleration["value"] = one.value or ""
        if one.effect is not None:
            toleration["effect"] = one.effect
        made.append(toleration)
    made += [
        {
            "key": f"node.kubernetes.io/{taint}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": AWAY,
        }
        for taint in ("not-ready", "unreachable")
    ]
    return made


def _where(job: ResolvedJob, stage: Stage, placement: Placement) -> Object:
    """The nodes: training's selector is required of training and preferred by the others.

    Volumes are then often on the right node already, and the others still run where no accelerator
    is free. Zones are required of all, because volumes may not leave theirs.
    """
    selector = job.spec.resources.node_selector or {}
    affinity: Object = {}
    zones = placement.platform.zones
    if zones:
        term = {"matchExpressions": [{"key": ZONE, "operator": "In", "values": list(zones)}]}
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": [term]}
    if stage != "train" and selector:
        expressions = [
            {"key": key, "operator": "In", "values": [value]} for key, value in selector.items()
        ]
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = [
            {"weight": 100, "preference": {"matchExpressions": expressions}}
        ]
    found: Object = {"affinity": {"nodeAffinity": affinity}} if affinity else {}
    if stage == "train" and selector:
        found["nodeSelector"] = dict(selector)
    return found
