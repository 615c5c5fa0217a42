"""The operator's chart on a running cluster, and what a platform team sets up beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness import chart
from harness.access import Access
from harness.containerd import ImageArchive


def chart_values(
    c: Access, operator: ImageArchive, trainer: ImageArchive, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the values with which the operator runs on a cluster; ``extra`` wins."""
    repository, _, tag = operator.reference.rpartition(":")
    return {
        "image": {"repository": repository, "tag": tag},
        "trainerImage": trainer.reference,
        "networkPolicy": {"apiServerPorts": [443, c.api.port]},
        **(extra or {}),
    }


def install_operator(
    c: Access, operator: ImageArchive, trainer: ImageArchive, extra: Mapping[str, Any] | None = None
) -> None:
    """Install the chart, or upgrade it, and wait until the operator's pod is ready."""
    values = chart_values(c, operator, trainer, extra)
    try:
        chart.install(c.kubeconfig, values, "--wait", "--timeout", "180s")
    except chart.HelmError as error:
        seen = c.kubectl("describe", "pods", "--namespace", chart.NAMESPACE)
        raise RuntimeError(f"the operator did not start: {error}\n{seen[-4000:]}") from error
