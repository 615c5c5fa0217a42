"""An attempt as an Indexed Job with a headless Service, for clusters without Kubeflow."""

from __future__ import annotations

from finetune_api.names import LABEL_ATTEMPT, LABEL_STAGE, LABEL_UID
from finetune_api.resolved import StageConfig
from finetune_operator.render import Object, owner
from finetune_operator.render.config import config_name
from finetune_operator.render.cpu_job import single_shot
from finetune_operator.render.placement import Placement
from finetune_operator.render.pod import Run, train_ports

PORT = 23456
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"


def indexed_job(config: StageConfig, child: str, placement: Placement) -> tuple[Object, ...]:
    """Return the Job of one attempt, and before it the Service by which its pods find the first.

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
        {"name": "MASTER_ADDR", "value": f"{child}-0.{child}"},
        {"name": "MASTER_PORT", "value": str(PORT)},
    ]
    run = Run(
        job=config.job,
        stage="train",
        number=attempt.number,
        child=child,
        digest=config.digest,
        config_map=config_name(child),
        gang=[{"name": "FINETUNE_NODE_RANK", "valueFrom": rank}, *(meeting if several else [])],
        ports=[{"name": "meeting", "containerPort": PORT, "protocol": "TCP"}, *train_ports()],
    )
    made = single_shot(run, placement, placement.queue_labels(), pods=attempt.nodes)
    if not several:
        return (made,)
    made["spec"]["template"]["spec"]["subdomain"] = child
    return _service(config, child, attempt.number), made


def _service(config: StageConfig, child: str, number: int) -> Object:
    """A name for each pod (``<child>-<index>.<child>``), from before the pod is ready."""
    labels = owner.labels(config.job, "train", number)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(config.job, child, labels),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {key: labels[key] for key in (LABEL_UID, LABEL_STAGE, LABEL_ATTEMPT)},
            "ports": [{"name": "meeting", "port": PORT, "targetPort": PORT, "protocol": "TCP"}],
        },
    }
