"""Single rules of rendering, by literals."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from finetune_api.profile import Platform
from finetune_api.resolved import Stage, StageConfig
from finetune_operator.backend import BACKENDS, attempt, prepare_or_publish
from finetune_operator.render.claims import claims, mounts, secrets
from finetune_operator.render.config import stage_config
from finetune_operator.render.placement import Placement
from finetune_operator.render.security import secured
from finetune_operator.render.workspace import made_by_us, made_for, shared, workspace
from finetune_operator.resolve import profile_problems
from harness.pod_security import violations
from harness.rendered import CHOICES, UID, attempt_config, faults, job_of

STAGES: tuple[Stage, ...] = ("prepare", "train", "publish")
SPEC: dict[str, Any] = {
    "model": {"uri": "pvc://models/base"},
    "dataset": {"train": [{"uri": "pvc://datasets/train.jsonl"}]},
    "method": {"lora": {}},
    "training": {"learningRate": 2e-4, "precision": "fp32", "gradientCheckpointing": False},
    "parallelism": {"ddp": {}},
    "resources": {"processesPerNode": 1},
}


def spec(**sections: Any) -> dict[str, Any]:
    out = copy.deepcopy(SPEC)
    for name, value in sections.items():
        out[name] = {**out.get(name, {}), **value}
    return out


def pod_of(
    stage: Stage,
    given: dict[str, Any] | None = None,
    platform: dict[str, Any] | None = None,
    backend: str = "PyTorchJob",
) -> dict[str, Any]:
    """The pod template of one stage."""
    job = job_of(given or SPEC)
    place = Placement(Platform.model_validate(platform or {}))
    if stage == "train":
        made = attempt(BACKENDS[backend], attempt_config(job), "support-bot-1", place)
    else:
        choices = CHOICES if stage == "publish" else None
        config = stage_config(job, stage, choices)
        made = prepare_or_publish(config, f"support-bot-{stage}", 1, place)
    assert faults(made) == []
    body = made[-1]["spec"]
    replicas = body.get("pytorchReplicaSpecs")
    found: dict[str, Any] = replicas["Worker"]["template"] if replicas else body["template"]
    return found


def variables(template: dict[str, Any]) -> dict[str, Any]:
    env = template["spec"]["containers"][0]["env"]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in env}


def test_each_stage_mounts_what_it_reads_and_only_publishing_writes() -> None:
    given = job_of(
        spec(
            model={"uri": "pvc://models/base", "tokenizer": {"uri": "pvc://tokens/t"}},
            dataset={
                "train": [{"uri": "pvc://a/x.jsonl"}, {"uri": "pvc://b/y.jsonl"}],
                "validation": {"sources": [{"uri": "pvc://c/z.jsonl"}]},
            },
            output={"uri": "pvc://out/bot"},
        )
    ).spec
    seen = {stage: [(one.name, one.writable) for one in claims(given, stage)] for stage in STAGES}
    assert seen == {
        "prepare": [(name, False) for name in ("a", "b", "c", "models", "out", "tokens")],
        "train": [("models", False), ("tokens", False)],
        "publish": [("models", False), ("out", True), ("tokens", False)],
    }
    assert mounts(given, "train").to_json() == {
        "workspace": "/workspace",
        "volumes": {"models": "/volumes/models", "tokens": "/volumes/tokens"},
    }


def test_one_claim_for_everything_is_one_volume() -> None:
    one = spec(
        model={"uri": "pvc://all/base"},
        dataset={"train": [{"uri": "pvc://all/train.jsonl"}]},
        workspace={"claimName": "all"},
        output={"uri": "pvc://all/out"},
    )
    prepare = pod_of("prepare", one)["spec"]
    claimed = [v for v in prepare["volumes"] if "persistentVolumeClaim" in v]
    assert claimed == [{"name": "workspace", "persistentVolumeClaim": {"claimName": "all"}}]
    assert prepare["containers"][0]["volumeMounts"][:2] == [
        {"name": "workspace", "mountPath": "/workspace", "subPath": "support-bot-8c7f5e0a"},
        {"name": "workspace", "mountPath": "/volumes/all", "readOnly": True},
    ]
    publish = pod_of("publish", one)["spec"]["containers"][0]["volumeMounts"][1]
    assert publish == {"name": "workspace", "mountPath": "/volumes/all"}


def test_a_volume_that_nobody_writes_to_is_read_only_as_a_whole() -> None:
    pod = pod_of("publish", spec(output={"uri": "pvc://out/bot"}))["spec"]
    sources = [v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert sources == [
        {"claimName": "support-bot-workspace"},
        {"claimName": "models", "readOnly": True},
        {"claimName": "out"},
    ]


def test_secrets_are_files_and_only_where_a_stage_needs_them() -> None:
    given = spec(
        model={"uri": "hf://owner/name", "tokenSecretRef": {"name": "hf"}},
        reporting={
            "wandb": {"project": "p", "apiKeySecretRef": {"name": "wandb", "key": "api.key"}}
        },
    )
    names = {
        stage: [(ref.name, ref.key) for ref in secrets(job_of(given).spec, stage)]
        for stage in STAGES
    }
    assert names == {
        "prepare": [("hf", "token"), ("wandb", "api.key")],
        "train": [("wandb", "api.key")],
        "publish": [],
    }
    settings = next(
        v for v in pod_of("prepare", given)["spec"]["volumes"] if v["name"] == "settings"
    )
    assert settings["projected"]["sources"] == [
        {
            "configMap": {
                "name": "support-bot-prepare-config",
                "items": [{"key": "job.json", "path": "job.json"}],
            }
        },
        {"secret": {"name": "hf", "items": [{"key": "token", "path": "secrets/hf/token"}]}},
        {
            "secret": {
                "name": "wandb",
                "items": [{"key": "api.key", "path": "secrets/wandb/api.key"}],
            }
        },
    ]
    assert "hf" not in json.dumps(pod_of("train", given)["spec"]["volumes"])


@pytest.mark.parametrize(
    ("network", "uri", "offline"),
    [
        ("HubOnly", "hf://owner/name", "0"),
        ("Open", "hf://owner/name", "0"),
        ("Offline", "hf://owner/name", "1"),
        ("HubOnly", "pvc://models/base", "1"),
    ],
)
def test_preparation_alone_goes_to_a_hub(network: str, uri: str, offline: str) -> None:
    given, platform = spec(model={"uri": uri}), {"network": network}
    assert variables(pod_of("prepare", given, platform))["HF_HUB_OFFLINE"] == offline
    assert variables(pod_of("train", given, platform))["HF_HUB_OFFLINE"] == "1"
    assert variables(pod_of("publish", given, platform))["HF_HUB_OFFLINE"] == "1"


def test_a_profiles_variables_reach_pods_unless_they_are_ours() -> None:
    platform = {
        "environment": [
            {"name": "NCCL_DEBUG", "value": "INFO"},
            {"name": "HTTPS_PROXY", "value": "http://$(USER)@proxy:3128"},
            {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"},
            {"name": "finetune_pod_uid", "value": "x"},
            {"name": "LD_PRELOAD", "value": "/volumes/models/evil.so"},
            {"name": "HF_TOKEN", "value": "secret"},
        ]
    }
    found = variables(pod_of("train", platform=platform))
    assert found["NCCL_DEBUG"] == "INFO"
    assert found["HTTPS_PROXY"] == "http://$$(USER)@proxy:3128"
    assert (
        not {"NVIDIA_VISIBLE_DEVICES", "finetune_pod_uid", "LD_PRELOAD", "HF_TOKEN"} & found.keys()
    )
    told = profile_problems({"metadata": {"name": "p"}, "spec": {"platform": platform}})
    assert {problem.code for problem in told} == {"variable-not-allowed"}
    assert [problem.field for problem in told] == [
        f"spec.platform.environment[{index}].name" for index in (2, 3, 4, 5)
    ]


@pytest.mark.parametrize("stage", ["prepare", "train", "publish"])
def test_a_cluster_that_assigns_ids_is_named_none(stage: Any) -> None:
    assigned = {"podSecurity": {"assignedByCluster": True, "supplementalGroups": [7000]}}
    pod = pod_of(stage, platform=assigned)
    assert pod["spec"]["securityContext"] == {
        "runAsNonRoot": True,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
        "supplementalGroups": [7000],
    }
    assert violations(pod) == []
    named = pod_of(stage)["spec"]["securityContext"]
    assert [named[i] for i in ("runAsUser", "runAsGroup", "fsGroup")] == [65532, 65532, 65532]


@pytest.mark.parametrize(
    ("platform", "told"),
    [
        (
            {"podSecurity": {"assignedByCluster": True, "runAsUser": 5, "fsGroup": 0}},
            [
                ("spec.platform.podSecurity.runAsUser", "id-assigned-by-cluster"),
                ("spec.platform.podSecurity.fsGroup", "id-assigned-by-cluster"),
            ],
        ),
        ({"podSecurity": {"assignedByCluster": True, "supplementalGroups": [7]}}, []),
        ({"podSecurity": {"assignedByCluster": False, "runAsUser": 5}}, []),
        (
            {"modelCache": {"claimName": "models"}},
            [("spec.platform.modelCache", "not-supported-model-cache")],
        ),
    ],
)
def test_what_a_profile_cannot_say_is_told(
    platform: dict[str, Any], told: list[tuple[str, str]]
) -> None:
    found = profile_problems({"metadata": {"name": "p"}, "spec": {"platform": platform}})
    assert [(one.field, one.code) for one in found] == told
    assert all(one.fix for one in found)


def test_who_is_who_in_a_gang() -> None:
    two = spec(resources={"nodes": 2})
    found = variables(pod_of("train", two))
    assert found["MASTER_ADDR"] == "support-bot-1-worker-0"
    assert found["MASTER_PORT"] == "23456"
    assert found["FINETUNE_NODE_RANK"]["fieldRef"]["fieldPath"] == (
        "metadata.labels['training.kubeflow.org/replica-index']"
    )
    template = pod_of("train", two, backend="Job")
    found = variables(template)
    assert found["MASTER_ADDR"] == "support-bot-1-0.support-bot-1"
    assert template["spec"]["subdomain"] == "support-bot-1"
    assert found["FINETUNE_NODE_RANK"]["fieldRef"]["fieldPath"] == (
        "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    )
    alone = pod_of("train", backend="Job")
    assert "subdomain" not in alone["spec"]
    assert "MASTER_ADDR" not in variables(alone)


def test_accelerators_are_for_training_alone() -> None:
    given = spec(
        resources={
            "accelerator": {"resource": "nvidia.com/gpu", "perNode": 8},
            "cpu": "32",
            "memory": "256Gi",
            "preparation": {"cpu": "8"},
        }
    )
    platform = {"extraResources": {"rdma/hca": "1", "cpu": "1"}}
    asked = {"cpu": "32", "memory": "256Gi", "nvidia.com/gpu": "8", "rdma/hca": "1"}
    container = pod_of("train", given, platform)["spec"]["containers"][0]
    assert container["resources"] == {"requests": asked, "limits": asked}
    container = pod_of("prepare", given, platform)["spec"]["containers"][0]
    assert container["resources"] == {"requests": {"cpu": "8"}, "limits": {"cpu": "8"}}
    assert pod_of("publish", given, platform)["spec"]["containers"][0]["resources"] == {}
    devices = [variables(pod_of(stage, given)).get("NVIDIA_VISIBLE_DEVICES") for stage in STAGES]
    assert devices == ["void", None, "void"]
    none = spec(resources={"accelerator": {"perNode": 0, "device": "cpu"}})
    assert variables(pod_of("train", none))["NVIDIA_VISIBLE_DEVICES"] == "void"


def shm_of(stage: Stage, **resources: Any) -> str:
    volumes = pod_of(stage, spec(resources=resources))["spec"]["volumes"]
    return next(str(v["emptyDir"]["sizeLimit"]) for v in volumes if v["name"] == "shm")


def test_shared_memory() -> None:
    assert shm_of("train") == "16Gi"
    assert shm_of("train", accelerator={"device": "cpu", "perNode": 1}) == "1Gi"
    assert shm_of("train", accelerator={"perNode": 0}) == "1Gi"
    assert shm_of("train", sharedMemory="64Gi") == "64Gi"
    assert shm_of("prepare", sharedMemory="64Gi") == "1Gi"


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


def test_the_security_block_is_the_last_word() -> None:
    template = {
        "metadata": {
            "annotations": {
                "container.apparmor.security.beta.kubernetes.io/trainer": "unconfined",
                "kept": "yes",
            }
        },
        "spec": {
            "hostNetwork": True,
            "hostPID": True,
            "automountServiceAccountToken": True,
            "securityContext": {"runAsUser": 0, "sysctls": [{"name": "kernel.msgmax"}]},
            "containers": [{"name": "a", "securityContext": {"privileged": True}}],
            "initContainers": [{"name": "b", "securityContext": {"runAsUser": 0}}],
        },
    }
    found = secured(template, Platform().pod_security)
    container = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert found == {
        "metadata": {"annotations": {"kept": "yes"}},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "fsGroup": 65532,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{"name": "a", "securityContext": container}],
            "initContainers": [{"name": "b", "securityContext": container}],
        },
    }


def test_the_profile_may_let_a_mesh_in_but_not_take_our_labels() -> None:
    platform = {
        "podLabels": {"sidecar.istio.io/inject": "true", "finetune.dev/job-uid": "x"},
        "podAnnotations": {"kueue.x-k8s.io/queue-name": "x", "team": "ml"},
    }
    metadata = pod_of("train", platform=platform)["metadata"]
    assert metadata["labels"]["sidecar.istio.io/inject"] == "true"
    assert metadata["labels"]["finetune.dev/job-uid"] == UID
    assert metadata["annotations"] == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
        "linkerd.io/inject": "disabled",
        "sidecar.istio.io/inject": "false",
        "team": "ml",
    }


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


def test_a_workspace_outlives_its_job_unless_it_is_not_to() -> None:
    claim = workspace(job_of(spec(workspace={"size": "500Gi", "storageClassName": "fast"})))
    assert claim is not None
    assert "ownerReferences" not in claim["metadata"]
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "500Gi"}},
        "storageClassName": "fast",
    }
    assert made_by_us(claim)
    assert made_for(claim) == UID
    assert not shared(claim)
    several = spec(workspace={"retain": False}, resources={"nodes": 2})
    claim = workspace(job_of(several), size="2Ti")
    assert claim is not None
    assert claim["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "name": "support-bot",
            "uid": UID,
            "controller": True,
            "blockOwnerDeletion": False,
        }
    ]
    assert claim["spec"]["resources"] == {"requests": {"storage": "2Ti"}}
    assert shared(claim)
    assert workspace(job_of(spec(workspace={"claimName": "mine"}))) is None
    assert not made_by_us({"metadata": {}})
    assert not shared(
        {"spec": {"accessModes": ["ReadWriteMany"]}, "status": {"accessModes": ["ReadWriteOnce"]}}
    )


def test_a_childs_configuration_says_all_that_its_processes_need() -> None:
    config = attempt_config(job_of(SPEC), 3)
    written = attempt(BACKENDS["Job"], config, "support-bot-3", Placement())[0]
    assert written["metadata"]["name"] == "support-bot-3-config"
    assert written["immutable"] is True
    found = StageConfig.model_validate_json(written["data"]["job.json"])
    assert found == config
    assert found.choices == CHOICES
    assert written["metadata"]["annotations"]["finetune.dev/digest"] == found.digest


def test_the_digest_in_the_arguments_is_that_of_the_file() -> None:
    config = attempt_config(job_of(SPEC))
    made = attempt(BACKENDS["PyTorchJob"], config, "support-bot-1", Placement())
    template = made[-1]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    assert template["spec"]["containers"][0]["args"] == [
        "train",
        "--config",
        "/etc/finetune/job.json",
        "--config-digest",
        made[0]["metadata"]["annotations"]["finetune.dev/digest"],
    ]
