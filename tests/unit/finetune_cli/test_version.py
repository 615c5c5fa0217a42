"""What a Deployment tells of the operator and of the trainer that it starts."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.problem import Refused
from finetune_cli.cluster.connection import ApiRefusal, NoAnswer
from finetune_cli.cluster.operator import NAMESPACE, operators, read_operator
from finetune_cli.version import lines
from harness.scripted_cluster import ScriptedCluster

EVERYWHERE = "/apis/apps/v1/deployments"
USUAL = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"


def deployment(**container: Any) -> dict[str, Any]:
    image = {"name": "operator", "image": "registry.example/finetune-operator:0.2.0"}
    return {
        "metadata": {
            "name": "finetune-operator",
            "namespace": "finetune-system",
            "labels": {"app.kubernetes.io/version": "0.2.0"},
        },
        "spec": {
            "template": {
                "spec": {
                    "containers": [
                        {"name": "proxy", "image": "proxy"},
                        {**image, **container},
                    ]
                }
            }
        },
    }


@pytest.mark.parametrize(
    ("container", "trainer"),
    [
        ({"args": ["--trainer-image", "t:1"]}, "t:1"),
        ({"args": ["--workers", "2", "--trainer-image=t:2"]}, "t:2"),
        ({"env": [{"name": "FINETUNE_OPERATOR_TRAINER_IMAGE", "value": "t:3"}]}, "t:3"),
        ({}, "not known: the operator names none, profiles may"),
    ],
)
def test_operator_and_trainer(container: dict[str, Any], trainer: str) -> None:
    assert lines(read_operator(deployment(**container))) == [
        "operator 0.2.0  registry.example/finetune-operator:0.2.0  (finetune-system/finetune-operator)",
        f"trainer  {trainer}",
    ]


def test_who_may_not_list_everywhere_looks_in_the_usual_namespace() -> None:
    cluster = ScriptedCluster(
        {
            EVERYWHERE: [ApiRefusal(403, "Forbidden", "")],
            USUAL: [{"items": [deployment()]}],
        }
    )
    assert [one.version for one in operators(cluster)] == ["0.2.0"]
    assert [path for path, _ in cluster.asked] == [EVERYWHERE, USUAL]


@pytest.mark.parametrize(
    ("error", "code"),
    [(ApiRefusal(403, "Forbidden", ""), "not-allowed"), (NoAnswer("x"), "cluster-unreachable")],
)
def test_what_cannot_be_learnt(error: Exception, code: str) -> None:
    with pytest.raises(Refused) as refused:
        operators(ScriptedCluster({EVERYWHERE: [error], USUAL: [error]}))
    assert refused.value.problems[0].code == code
