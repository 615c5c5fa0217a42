"""The operator of a cluster, as its Deployment describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_cli.cluster.connection import ApiRefusal, Cluster, NoAnswer, refused, unreachable
from finetune_operator.resolve.paths import look

LABEL_NAME = "app.kubernetes.io/name"
LABEL_VERSION = "app.kubernetes.io/version"
NAME = "finetune-operator"
NAMESPACE = "finetune-system"
_FLAG = "--trainer-image"
_VARIABLE = "FINETUNE_OPERATOR_TRAINER_IMAGE"


@dataclass(frozen=True)
class Operator:
    """One installed operator."""

    namespace: str
    name: str
    version: str
    image: str
    trainer: str
    """The image of the trainer that it starts where a profile names none."""


def operators(cluster: Cluster) -> list[Operator]:
    """Return the operators that may be seen: in all namespaces, else in the usual one.

    Raises ``Refused`` where neither may be read or nobody answers.
    """
    query = {"labelSelector": f"{LABEL_NAME}={NAME}"}
    try:
        try:
            found = cluster.get("/apis/apps/v1/deployments", query)
        except ApiRefusal as error:
            if error.code != 403:
                raise
            found = cluster.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments", query)
    except ApiRefusal as error:
        raise refused(error, cluster, f"read deployments in namespace {NAMESPACE}") from error
    except NoAnswer as error:
        raise unreachable(error, cluster) from error
    return [read_operator(body) for body in found.get("items") or ()]


def read_operator(body: Mapping[str, Any]) -> Operator:
    """Return what a Deployment says."""
    containers = look(body, "spec", "template", "spec", "containers") or [{}]
    container = next((one for one in containers if NAME in str(one.get("image"))), containers[0])
    image = str(container.get("image") or "")
    labels = look(body, "metadata", "labels") or {}
    return Operator(
        namespace=str(look(body, "metadata", "namespace")),
        name=str(look(body, "metadata", "name")),
        version=str(labels.get(LABEL_VERSION) or ""),
        image=image,
        trainer=_trainer(container),
    )


def _trainer(container: Mapping[str, Any]) -> str:
    words = [str(word) for key in ("command", "args") for word in container.get(key) or ()]
    for index, word in enumerate(words):
        if word.startswith(f"{_FLAG}="):
            return word.partition("=")[2]
        if word == _FLAG and index + 1 < len(words):
            return words[index + 1]
    variables = container.get("env") or ()
    return next((str(v.get("value") or "") for v in variables if v.get("name") == _VARIABLE), "")
