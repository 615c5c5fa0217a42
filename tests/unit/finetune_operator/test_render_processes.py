"""What the processes of a pod are told: variables, arguments, configuration."""

from __future__ import annotations

import hashlib

import pytest

from finetune_api.resolved import StageConfig
from finetune_operator.backend import BACKENDS, attempt
from finetune_operator.render.placement import Placement
from finetune_operator.resolve import profile_problems
from harness.pod_templates import SPEC, pod_of, spec, variables
from harness.rendered import CHOICES, UID, attempt_config, job_of


@pytest.mark.parametrize(
    ("network", "uri", "offline"),
    [
        ("HubOnly", "hf://owner/name", "0"),
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
    assert found["MASTER_ADDR"] == "support-bot-1-0.support-bot-8c7f5e0a"
    assert template["spec"]["subdomain"] == "support-bot-8c7f5e0a"
    assert found["FINETUNE_NODE_RANK"]["fieldRef"]["fieldPath"] == (
        "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    )
    alone = pod_of("train", backend="Job")
    assert "subdomain" not in alone["spec"]
    assert "MASTER_ADDR" not in variables(alone)


def test_a_pod_carries_the_configuration_that_its_arguments_name() -> None:
    config = attempt_config(job_of(SPEC), 3)
    (made,) = attempt(BACKENDS["PyTorchJob"], config, "support-bot-3", Placement())
    template = made["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    text = template["metadata"]["annotations"]["finetune.dev/config"]
    found = StageConfig.model_validate_json(text)
    assert found == config
    assert found.choices == CHOICES
    assert template["spec"]["containers"][0]["args"] == [
        "train",
        "--config",
        "/etc/finetune/job.json",
        "--config-digest",
        "sha256:" + hashlib.sha256(text.encode()).hexdigest(),
    ]


def test_no_profile_says_what_a_pod_is_told() -> None:
    platform = {"podAnnotations": {"finetune.dev/config": "{}", "team": "ml"}}
    annotations = pod_of("prepare", platform=platform)["metadata"]["annotations"]
    assert annotations["team"] == "ml"
    assert StageConfig.model_validate_json(annotations["finetune.dev/config"]).stage == "prepare"


def test_all_attempts_of_a_job_are_found_by_one_service() -> None:
    job = job_of(spec(resources={"nodes": 2}))
    first, second = (
        attempt(BACKENDS["Job"], attempt_config(job, number), f"support-bot-{number}", Placement())
        for number in (1, 2)
    )
    assert first[0] == second[0]
    assert first[0]["spec"]["selector"] == {
        "finetune.dev/job-uid": UID,
        "finetune.dev/stage": "train",
    }
