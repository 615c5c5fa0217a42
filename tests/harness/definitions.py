"""The definitions of this checkout on a control plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.control_plane import ControlPlane
from harness.processes import wait_until

CRDS = Path(__file__).parents[2] / "crds"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def apply_definitions(plane: ControlPlane) -> dict[str, Any]:
    """Apply the files as they lie in the repository; returns the definitions by plural name."""
    return {
        plural: apply_definition(
            plane,
            f"{plural}.finetune.dev",
            (CRDS / f"finetune.dev_{plural}.yaml").read_bytes(),
        )
        for plural in ("finetunejobs", "finetuneprofiles")
    }


def apply_definition(plane: ControlPlane, name: str, body: bytes) -> dict[str, Any]:
    """Apply one definition and wait until its objects can be written; returns it."""
    path = f"{DEFINITIONS}/{name}"
    plane.api.apply(path, body)

    def established() -> bool:
        conditions = plane.api.get(path).get("status", {}).get("conditions") or []
        return {"Established": "True"}.items() <= {
            one["type"]: one["status"] for one in conditions
        }.items()

    wait_until(established, f"{name} was established", plane.processes)
    return plane.api.get(path)
