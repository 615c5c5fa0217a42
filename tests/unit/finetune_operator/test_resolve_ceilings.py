"""What a profile allows, and its limits."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.resolve import resolve
from harness.resolving import MINIMAL, chosen, job, profile, refused

ASK = "or ask who runs the cluster to allow it"
NOT_ALLOWED: dict[str, tuple[dict[str, Any], dict[str, Any], list[tuple[str, str, str]]]] = {
    "uris": (
        {"uris": ["hf://meta/*", "pvc://datasets/*"]},
        {},
        [
            (
                "spec.model.uri",
                'spec.model.uri "hf://Qwen/Qwen2.5-7B-Instruct" is not allowed by profile shared '
                "(allow.uris: hf://meta/*, pvc://datasets/*)",
                f"use one of hf://meta/*, pvc://datasets/*, {ASK}",
            )
        ],
    ),
    "nothing": (
        {"uris": []},
        {"output": {"uri": "pvc://models/bot"}},
        [
            (
                field,
                f"{field} {text} is not allowed by profile shared (allow.uris: nothing)",
                f"remove it, {ASK}",
            )
            for field, text in (
                ("spec.model.uri", '"hf://Qwen/Qwen2.5-7B-Instruct"'),
                ("spec.dataset.train[0].uri", '"pvc://datasets/support/train.jsonl"'),
                ("spec.output.uri", '"pvc://models/bot"'),
            )
        ],
    ),
    "endpoints": (
        {"endpoints": ["https://hub.example"]},
        {"model": {"uri": "hf://a/b", "endpoint": "https://hub.example.evil"}},
        [
            (
                "spec.model.endpoint",
                'spec.model.endpoint "https://hub.example.evil" is not allowed by profile shared '
                "(allow.endpoints: https://hub.example)",
                f"use one of https://hub.example, {ASK}",
            )
        ],
    ),
    "workspace": (
        {"uris": ["hf://*", "pvc://datasets/*"]},
        {"workspace": {"claimName": "payroll"}},
        [
            (
                "spec.workspace.claimName",
                'spec.workspace.claimName "pvc://payroll/" is not allowed by profile shared '
                "(allow.uris: hf://*, pvc://datasets/*)",
                f"use one of hf://*, pvc://datasets/*, {ASK}",
            )
        ],
    ),
    "no mirror where secrets are limited": (
        {"secrets": ["finetune-*"]},
        {
            "model": {
                "uri": "hf://a/b",
                "endpoint": "https://hub.example",
                "tokenSecretRef": {"name": "finetune-hf"},
            }
        },
        [
            (
                "spec.model.endpoint",
                'spec.model.endpoint "https://hub.example" is not allowed by profile shared '
                "(allow.endpoints: nothing)",
                f"remove it, {ASK}",
            )
        ],
    ),
    "secrets": (
        {"secrets": ["finetune-*"]},
        {"model": {"uri": "hf://a/b", "tokenSecretRef": {"name": "admin"}}},
        [
            (
                "spec.model.tokenSecretRef.name",
                'spec.model.tokenSecretRef.name "admin" is not allowed by profile shared '
                "(allow.secrets: finetune-*)",
                f"use one of finetune-*, {ASK}",
            )
        ],
    ),
    "methods": (
        {"methods": ["lora"]},
        {"method": {"full": {}}},
        [
            (
                "spec.method.full",
                "spec.method.full is not allowed by profile shared (allow.methods: lora)",
                f"use one of lora, {ASK}",
            )
        ],
    ),
    "nodeSelectorKeys": (
        {"nodeSelectorKeys": ["pool"]},
        {"resources": {"nodeSelector": {"pool": "a", "kubernetes.io/hostname": "n1"}}},
        [
            (
                "spec.resources.nodeSelector[kubernetes.io/hostname]",
                "spec.resources.nodeSelector[kubernetes.io/hostname] is not allowed by profile "
                "shared (allow.nodeSelectorKeys: pool)",
                f"use one of pool, {ASK}",
            )
        ],
    ),
    "tolerations": (
        {"tolerations": [{"key": "gpu", "effect": "NoSchedule"}]},
        {
            "resources": {
                "tolerations": [
                    {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
                    {"key": "gpu", "operator": "Exists"},
                ]
            }
        },
        [
            (
                "spec.resources.tolerations[1]",
                "spec.resources.tolerations[1] gpu is not allowed by profile shared "
                "(allow.tolerations: gpu:NoSchedule)",
                f"use one of gpu:NoSchedule, {ASK}",
            )
        ],
    ),
    "priorityClassNames": (
        {"priorityClassNames": ["batch"]},
        {"resources": {"priorityClassName": "urgent"}},
        [
            (
                "spec.resources.priorityClassName",
                'spec.resources.priorityClassName "urgent" is not allowed by profile shared '
                "(allow.priorityClassNames: batch)",
                f"use one of batch, {ASK}",
            )
        ],
    ),
}


@pytest.mark.parametrize("case", NOT_ALLOWED)
def test_not_allowed(case: str) -> None:
    allow, change, expected = NOT_ALLOWED[case]
    found = refused(job(change), [profile({"allow": allow})])
    assert found == [(field, "not-allowed", message, fix) for field, message, fix in expected]


def test_what_the_profile_itself_fills_in_is_allowed() -> None:
    defaults = {
        "workspace": {"claimName": "shared"},
        "model": {"endpoint": "https://hub.example"},
    }
    spec = {"allow": {"uris": ["hf://*", "pvc://datasets/*"]}, "defaults": defaults}
    found = resolve(job({"model": {"uri": "hf://a/b"}}), [profile(spec)]).spec
    assert found.workspace.claim_name == "shared"
    assert found.model.endpoint == "https://hub.example"
    same = {"model": {"uri": "hf://a/b", "endpoint": "https://hub.example/"}}
    assert resolve(job(same), [profile(spec)]).spec.model.endpoint == "https://hub.example/"


def test_a_limit_of_a_profile_is_for_those_jobs_that_need_one() -> None:
    """With invalidRows: Drop a job needs a limit; who fails on such rows has no use for it."""
    spec = {"defaults": {"dataset": {"maxInvalidFraction": 0.01}}}
    assert resolve(job(), [profile(spec)]).spec.dataset.invalid_rows == "Fail"
    dropping = {"dataset": {**MINIMAL["dataset"], "invalidRows": "Drop"}}
    assert resolve(job(dropping), [profile(spec)]).spec.dataset.max_invalid_fraction == 0.01


def test_queues_are_read_off_the_labels() -> None:
    queued = job(labels={"kueue.x-k8s.io/queue-name": "other"})
    assert refused(queued, [profile({"allow": {"queueNames": ["team-*"]}})]) == [
        (
            "metadata.labels[kueue.x-k8s.io/queue-name]",
            "not-allowed",
            'metadata.labels[kueue.x-k8s.io/queue-name] "other" is not allowed by profile shared '
            "(allow.queueNames: team-*)",
            f"use one of team-*, {ASK}",
        )
    ]
    queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "team-a"
    assert resolve(queued, [profile({"allow": {"queueNames": ["team-*"]}})]).name == "bot"


def test_remote_code_has_to_be_allowed() -> None:
    change = {"model": {"uri": "hf://a/b", "remoteCode": True}}
    codes = [code for _, code, _, _ in refused(job(change), [profile({})])]
    assert codes == ["not-supported-remote-code", "not-allowed"]
    allowed = [profile({"allow": {"remoteCode": True}})]
    assert [code for _, code, _, _ in refused(job(change), allowed)] == [
        "not-supported-remote-code"
    ]


def test_a_star_crosses_slashes_and_nothing_else_is_special() -> None:
    from finetune_operator.resolve.ceilings import glob_matches

    assert glob_matches("pvc://*", "pvc://datasets/support/train.jsonl")
    assert glob_matches("hf://Qwen/*", "hf://Qwen/Qwen2.5-7B")
    assert not glob_matches("hf://Qwen/*", "hf://QwenX/Qwen2.5-7B")
    assert not glob_matches("hf://Qwen2.5", "hf://Qwen2x5")
    assert not glob_matches("finetune-*", "a-finetune-b")
    assert glob_matches("a*b*c", "a-b-b-c")
    assert not glob_matches("a*b*c", "a-c-b")
    assert not glob_matches("ab*ba", "aba")
    assert glob_matches("ab*ba", "abba")
    assert not glob_matches("*a" * 200 + "b", "a" * 1000)
    assert glob_matches("[a]?", "[a]?")
    assert not glob_matches("[a]?", "ab")


LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, str, str]]] = {
    "nodes": (
        {"nodes": 4},
        {"resources": {"nodes": 8}},
        (
            "spec.resources.nodes",
            "spec.resources.nodes is 8; profile shared allows at most 4 (limits.nodes)",
            "lower nodes to 4, or ask who runs the cluster",
        ),
    ),
    "accelerators": (
        {"accelerators": 32},
        {"resources": {"nodes": 5, "accelerator": {"perNode": 8}}},
        (
            "spec.resources.nodes",
            "the job wants 40 accelerators (5 x 8); profile shared allows at most 32 "
            "(limits.accelerators)",
            "lower nodes to 4, or ask who runs the cluster",
        ),
    ),
    "accelerators of one node": (
        {"accelerators": 4},
        {"resources": {"accelerator": {"perNode": 8}}},
        (
            "spec.resources.accelerator.perNode",
            "the job wants 8 accelerators (1 x 8); profile shared allows at most 4 "
            "(limits.accelerators)",
            "lower accelerator.perNode to 4, or ask who runs the cluster",
        ),
    ),
    "acceleratorHours": (
        {"acceleratorHours": 64},
        {
            "resources": {"nodes": 2, "accelerator": {"perNode": 8}},
            "activeDeadlineSeconds": 18000,
        },
        (
            "spec.activeDeadlineSeconds",
            "spec.activeDeadlineSeconds is 18000 (5h); profile shared allows at most 14400 (4h) "
            "(limits.acceleratorHours)",
            "lower activeDeadlineSeconds to 14400 (4h), or ask who runs the cluster",
        ),
    ),
    "runtime": (
        {"runtime": "72h"},
        {"activeDeadlineSeconds": 604800},
        (
            "spec.activeDeadlineSeconds",
            "spec.activeDeadlineSeconds is 604800 (7d); profile shared allows at most 259200 (3d) "
            "(limits.runtime)",
            "lower activeDeadlineSeconds to 259200 (3d), or ask who runs the cluster",
        ),
    ),
    "maxLength": (
        {"maxLength": 4096},
        {"dataset": {**MINIMAL["dataset"], "maxLength": 8192}},
        (
            "spec.dataset.maxLength",
            "spec.dataset.maxLength is 8192; profile shared allows at most 4096 (limits.maxLength)",
            "lower maxLength to 4096, or ask who runs the cluster",
        ),
    ),
    "workspace": (
        {"workspace": "2Ti"},
        {"workspace": {"size": "2049Gi"}},
        (
            "spec.workspace.size",
            "spec.workspace.size is 2049Gi; profile shared allows at most 2Ti (limits.workspace)",
            "lower size to 2Ti, or ask who runs the cluster",
        ),
    ),
    "gracePeriodSeconds": (
        {"gracePeriodSeconds": 600},
        {"checkpoint": {"gracePeriodSeconds": 601}},
        (
            "spec.checkpoint.gracePeriodSeconds",
            "spec.checkpoint.gracePeriodSeconds is 601; profile shared allows at most 600 "
            "(limits.gracePeriodSeconds)",
            "lower gracePeriodSeconds to 600, or ask who runs the cluster",
        ),
    ),
}


@pytest.mark.parametrize("case", LIMITS)
def test_over_a_limit(case: str) -> None:
    limits, change, (field, message, fix) = LIMITS[case]
    found = refused(job(change), [profile({"limits": limits})])
    assert found == [(field, "over-limit", message, fix)]


def test_exactly_at_every_limit() -> None:
    limits = {
        "nodes": 2,
        "accelerators": 16,
        "acceleratorHours": 64,
        "runtime": "4h",
        "maxLength": 4096,
        "workspace": "2Ti",
        "gracePeriodSeconds": 600,
    }
    change = {
        "resources": {"nodes": 2, "accelerator": {"perNode": 8}},
        "activeDeadlineSeconds": 14400,
        "dataset": {**MINIMAL["dataset"], "maxLength": 4096},
        "workspace": {"size": "2048Gi"},
        "checkpoint": {"gracePeriodSeconds": 600},
    }
    assert resolve(job(change), [profile({"limits": limits})]).name == "bot"


def test_a_default_of_ours_is_brought_below_the_limit() -> None:
    limits = {"maxLength": 1024, "gracePeriodSeconds": 60, "runtime": "8h", "acceleratorHours": 4}
    resolved = resolve(job(), [profile({"limits": limits})])
    assert resolved.spec.dataset.max_length == 1024
    assert resolved.spec.checkpoint.grace_period_seconds == 60
    assert resolved.spec.active_deadline_seconds == 14400
    reasons = chosen(resolved)
    assert reasons["dataset.maxLength"] == (
        "1024",
        "the most that profile shared allows (limits.maxLength)",
    )
    assert reasons["activeDeadlineSeconds"] == (
        "14400",
        "the most that profile shared allows (limits.acceleratorHours)",
    )


@pytest.mark.parametrize(
    ("limit", "workspace", "size"),
    [
        ("20Gi", {}, "20Gi"),
        ("50Gi", {}, None),
        ("2Ti", {}, None),
        ("20Gi", {"size": "10Gi"}, "10Gi"),
        ("20Gi", {"storageClassName": "fast"}, "20Gi"),
        ("20Gi", {"claimName": "mine"}, None),
    ],
)
def test_the_usual_workspace_is_brought_below_the_limit(
    limit: str, workspace: dict[str, str], size: str | None
) -> None:
    written = {"workspace": workspace} if workspace else {}
    resolved = resolve(job(written), [profile({"limits": {"workspace": limit}})])
    assert resolved.spec.workspace.size == size
    said = chosen(resolved).get("workspace.size")
    if workspace.get("size") or size is None:
        assert said is None
    else:
        reason = "the most that profile shared allows (limits.workspace)"
        assert said == (size, reason)
        assert resolved.origins["workspace.size"] == "built-in"


def test_no_hours_of_accelerators_at_all() -> None:
    [(field, code, message, _)] = refused(job(), [profile({"limits": {"acceleratorHours": 0}})])
    assert (field, code) == ("spec.activeDeadlineSeconds", "over-limit")
    assert message == (
        "spec.activeDeadlineSeconds is 1 (1s); profile shared allows at most 0 (0s) "
        "(limits.acceleratorHours)"
    )


def test_a_limit_beyond_what_a_deadline_can_say() -> None:
    resolved = resolve(job(), [profile({"limits": {"acceleratorHours": 1e9}})])
    assert resolved.spec.active_deadline_seconds == 1_000_000_000


def test_hours_of_accelerators_do_not_bind_a_job_without_any() -> None:
    change = {"resources": {"accelerator": {"device": "cpu", "perNode": 0}}}
    resolved = resolve(job(change), [profile({"limits": {"acceleratorHours": 4}})])
    assert resolved.spec.active_deadline_seconds is None
