"""An attempt as a PyTorchJob: workers only, single-shot."""

from __future__ import annotations

from finetune_api.resolved import StageConfig
from finetune_operator.render import Object, owner
from finetune_operator.render.placement import Placement
from finetune_operator.render.pod import Run, template, train_ports

CONTAINER = "pytorch"
"""The controller wants this name."""
PORT = 23456
PORT_NAME = "pytorchjob-port"
INDEX_LABEL = "training.kubeflow.org/replica-index"


def pytorch_job(config: StageConfig, child: str, placement: Placement) -> Object:
    """Return the PyTorchJob of one attempt.

    Without a master the controller adds no init container, and the job succeeds when all workers
    did. With ``restartPolicy: Never`` the loss of one running worker fails it, and its controller
    ends the others at once. Ranks and the meeting place are ours to name: a worker-only job is
    told neither.
    """
    attempt = config.attempt
    if attempt is None:
        raise ValueError("the configuration has no attempt: it is not one of a train stage")
    path = f"metadata.labels['{INDEX_LABEL}']"
    rank: Object = {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}
    run = Run(
        config=config,
        number=attempt.number,
        child=child,
        container=CONTAINER,
        gang=[
            {"name": "FINETUNE_NODE_RANK", "valueFrom": rank},
            {"name": "MASTER_ADDR", "value": f"{child}-worker-0"},
            {"name": "MASTER_PORT", "value": str(PORT)},
        ],
        ports=[{"name": PORT_NAME, "containerPort": PORT, "protocol": "TCP"}, *train_ports()],
    )
    pods = template(run, placement)
    del pods["spec"]["restartPolicy"]  # the replica's counts; the controller warns of a second one
    queue = placement.queue_labels()
    labels = {**owner.labels(config.job, "train", attempt.number), **queue}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": owner.metadata(config.job, child, labels),
        "spec": {
            "runPolicy": {"cleanPodPolicy": "Running", "suspend": bool(queue)},
            "pytorchReplicaSpecs": {
                "Worker": {
                    "replicas": attempt.nodes,
                    "restartPolicy": "Never",
                    "template": pods,
                }
            },
        },
    }
