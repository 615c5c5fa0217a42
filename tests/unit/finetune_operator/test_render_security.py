"""What a pod may do, whatever a profile says."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.profile import Platform
from finetune_operator.render.security import secured
from finetune_operator.resolve import profile_problems
from harness.pod_security import violations
from harness.pod_templates import pod_of
from harness.rendered import UID


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
        (
            {"network": "Open", "price": {"perAcceleratorHour": 2.5}},
            [
                ("spec.platform.network", "not-supported-network-open"),
                ("spec.platform.price", "not-supported-price"),
            ],
        ),
        ({"network": "Offline"}, []),
        ({"extraResources": {"ephemeral-storage": "20Gi", "rdma/hca": 1}}, []),
    ],
)
def test_what_a_profile_cannot_say_is_told(
    platform: dict[str, Any], told: list[tuple[str, str]]
) -> None:
    found = profile_problems({"metadata": {"name": "p"}, "spec": {"platform": platform}})
    assert [(one.field, one.code) for one in found] == told
    assert all(one.fix for one in found)


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
    del metadata["annotations"]["finetune.dev/config"]
    assert metadata["annotations"] == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
        "linkerd.io/inject": "disabled",
        "sidecar.istio.io/inject": "false",
        "team": "ml",
    }
