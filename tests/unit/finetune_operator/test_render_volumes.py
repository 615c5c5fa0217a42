"""What pods mount and who may write to it; the workspace."""

from __future__ import annotations

import json
from typing import Any

from finetune_api.resolved import Stage
from finetune_operator.render.claims import claims, mounts, secrets
from finetune_operator.render.workspace import made_by_us, made_for, shared, workspace
from harness.pod_templates import STAGES, pod_of, spec
from harness.rendered import UID, job_of


def test_each_stage_mounts_what_it_reads_and_only_the_output_is_written_to() -> None:
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
        "prepare": [(name, name == "out") for name in ("a", "b", "c", "models", "out", "tokens")],
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
        {"name": "workspace", "mountPath": "/volumes/all"},
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
            "downwardAPI": {
                "items": [
                    {
                        "path": "job.json",
                        "fieldRef": {
                            "apiVersion": "v1",
                            "fieldPath": "metadata.annotations['finetune.dev/config']",
                        },
                    }
                ]
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


def shm_of(stage: Stage, **resources: Any) -> str:
    volumes = pod_of(stage, spec(resources=resources))["spec"]["volumes"]
    return next(str(v["emptyDir"]["sizeLimit"]) for v in volumes if v["name"] == "shm")


def test_shared_memory() -> None:
    assert shm_of("train") == "16Gi"
    assert shm_of("train", accelerator={"device": "cpu", "perNode": 1}) == "1Gi"
    assert shm_of("train", accelerator={"perNode": 0}) == "1Gi"
    assert shm_of("train", sharedMemory="64Gi") == "64Gi"
    assert shm_of("prepare", sharedMemory="64Gi") == "1Gi"


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
