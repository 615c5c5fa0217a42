"""An attempt as an Indexed Job, for clusters without Kubeflow; its job has a headless Service."""

from __future__ import annotations

from finetune_api.names import LABEL_STAGE, LABEL_UID, workspace_folder
from finetune_api.resolved import ResolvedJob, StageConfig
from finetune_operator.render import Object, owner
from finetune_operator.render.cpu_job import single_shot
from finetune_operator.render.placement import Placement
from finetune_operator.render.pod import Run, train_ports

PORT = 23456
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"


def indexed_job(config: StageConfig, child: str, placement: Placement) -> tuple[Object, ...]:
    """Return the Job of one attempt, before it the Service by which the pods of its job are found.

    The first failed pod fails the Job, and its controller ends the others: the same single shot as
    a PyTorchJob. One node needs no Service.
    """
    attempt = config.attempt
    if attempt is None:
        raise ValueError("the configuration has no attempt: it is not one of a train stage")
    path = f"metadata.annotations['{INDEX_ANNOTATION}']"
    rank: Object = {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}
    several = attempt.nodes > 1
    meeting: list[Object] = [
        {"name": "MASTER_ADDR", "value": f"{child}-0.{_service_name(config.job)}"},
        {"name": "MASTER_PORT", "value": str(PORT)},
    ]
    run = Run(
        config=config,
        number=attempt.number,
        child=child,
        gang=[{"name": "FINETUNE_NODE_RANK", "valueFrom": rank}, *(meeting if several else [])],
        ports=[{"name": "meeting", "containerPort": PORT, "protocol": "TCP"}, *train_ports()],
    )
    made = single_shot(run, placement, placement.queue_labels(), pods=attempt.nodes)
    if not several:
        return (made,)
    made["spec"]["template"]["spec"]["subdomain"] = _service_name(config.job)
    return _service(config.job), made


def _service_name(job: ResolvedJob) -> str:
    """Return the name of the one Service of a job; no other job's, earlier or later, has it."""
    return workspace_folder(job.name, job.uid)


def _service(job: ResolvedJob) -> Object:
    """A name for each pod (``<child>-<index>.<service>``), from before the pod is ready.

    All attempts share it: their pods differ in the child's name, and those that have ended are
    not found any more.
    """
    labels = owner.labels(job, "train")
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(job, _service_name(job), labels),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {key: labels[key] for key in (LABEL_UID, LABEL_STAGE)},
            "ports": [{"name": "meeting", "port": PORT, "targetPort": PORT, "protocol": "TCP"}],
        },
    }
