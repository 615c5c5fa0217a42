"""Where pods may run, for how long they may end, and which queue they wait in."""

from __future__ import annotations

import pytest

from finetune_api.profile import Platform
from finetune_operator.backend import BACKENDS, attempt, prepare_or_publish
from finetune_operator.render.config import stage_config
from finetune_operator.render.placement import Placement
from harness.pod_templates import SPEC, STAGES, pod_of, spec, variables
from harness.rendered import attempt_config, job_of


def test_accelerators_are_for_training_alone() -> None:
    given = spec(
        resources={
            "accelerator": {"resource": "nvidia.com/gpu", "perNode": 8},
            "cpu": "32",
            "memory": "256Gi",
            "preparation": {"cpu": "8"},
        }
    )
    scratch = {"ephemeral-storage": "20Gi"}
    platform = {"extraResources": {"rdma/hca": "1", **scratch}}
    asked = {"cpu": "32", "memory": "256Gi", "nvidia.com/gpu": "8", "rdma/hca": "1", **scratch}
    container = pod_of("train", given, platform)["spec"]["containers"][0]
    assert container["resources"] == {"requests": asked, "limits": asked}
    container = pod_of("prepare", given, platform)["spec"]["containers"][0]
    asked = {"cpu": "8", **scratch}
    assert container["resources"] == {"requests": asked, "limits": asked}
    container = pod_of("publish", given, platform)["spec"]["containers"][0]
    assert container["resources"] == {"requests": scratch, "limits": scratch}
    assert pod_of("publish", given)["spec"]["containers"][0]["resources"] == {}
    devices = [variables(pod_of(stage, given)).get("NVIDIA_VISIBLE_DEVICES") for stage in STAGES]
    assert devices == ["void", None, "void"]
    none = spec(resources={"accelerator": {"perNode": 0, "device": "cpu"}})
    assert variables(pod_of("train", none))["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_the_cpu_stages_prefer_the_nodes_of_training_and_zones_bind_all() -> None:
    given = spec(resources={"nodeSelector": {"pool": "gpu"}})
    zone = {
        "nodeSelectorTerms": [
            {
                "matchExpressions": [
                    {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a", "b"]}
                ]
            }
        ]
    }
    train = pod_of("train", given, {"zones": ["a", "b"]})["spec"]
    assert train["nodeSelector"] == {"pool": "gpu"}
    assert train["affinity"] == {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": zone}
    }
    publish = pod_of("publish", given, {"zones": ["a", "b"]})["spec"]
    assert "nodeSelector" not in publish
    wish = {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["gpu"]}]}
    assert publish["affinity"] == {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": zone,
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 100, "preference": wish}
            ],
        }
    }


def test_no_toleration_keeps_a_pod_on_a_node_that_is_gone() -> None:
    given = spec(
        resources={
            "tolerations": [
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists"},
                {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
            ]
        }
    )
    assert pod_of("prepare", given)["spec"]["tolerations"] == [
        {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"},
        {
            "key": "node.kubernetes.io/not-ready",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 60,
        },
        {
            "key": "node.kubernetes.io/unreachable",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 60,
        },
    ]


def test_training_has_its_grace_period_and_less_than_the_operator_waits_beyond_it() -> None:
    pod = pod_of("train", spec(checkpoint={"gracePeriodSeconds": 300}))["spec"]
    assert pod["terminationGracePeriodSeconds"] == 330
    assert pod_of("publish")["spec"]["terminationGracePeriodSeconds"] == 30


@pytest.mark.parametrize("backend", ["PyTorchJob", "Job"])
def test_a_queue_gets_a_suspended_child(backend: str) -> None:
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "high"}
    config = attempt_config(job_of(SPEC))
    queued = Placement.of(Platform(), labels)
    child = attempt(BACKENDS[backend], config, "support-bot-1", queued)[-1]
    assert child["spec"].get("runPolicy", child["spec"])["suspend"] is True
    assert child["metadata"]["labels"].items() >= labels.items()
    child = attempt(BACKENDS[backend], config, "support-bot-1", Placement.of(Platform(), {}))[-1]
    assert child["spec"].get("runPolicy", child["spec"])["suspend"] is False
    own = Placement(Platform.model_validate({"preparationQueueName": "cpus"}), "gpus", "high")
    prepare = prepare_or_publish(stage_config(job_of(SPEC), "prepare"), "p", 1, own)[-1]
    assert prepare["spec"]["suspend"] is True
    assert prepare["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "cpus"
    prepare = prepare_or_publish(stage_config(job_of(SPEC), "prepare"), "p", 1, queued)[-1]
    assert prepare["spec"]["suspend"] is False
    assert "kueue.x-k8s.io/queue-name" not in prepare["metadata"]["labels"]
