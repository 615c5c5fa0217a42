"""One control plane for all tests of the layer, with the definitions of this checkout."""

from pathlib import Path

import pytest

from harness.control_plane import control_plane
from harness.processes import wait_until

CRDS = Path(__file__).parents[2] / "crds"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="session")
def plane():
    with control_plane() as running:
        yield running


@pytest.fixture(scope="session")
def api(plane):
    return plane.api


@pytest.fixture(scope="session")
def definitions(plane):
    """Apply the files as they lie in the repository; returns the definitions by plural name."""
    found = {}
    for plural in ("finetunejobs", "finetuneprofiles"):
        path = f"{DEFINITIONS}/{plural}.finetune.dev"
        plane.api.apply(path, (CRDS / f"finetune.dev_{plural}.yaml").read_bytes())

        def established(path=path):
            conditions = plane.api.get(path).get("status", {}).get("conditions") or []
            return {"Established": "True"}.items() <= {
                one["type"]: one["status"] for one in conditions
            }.items()

        wait_until(established, f"{plural} was established", plane.processes)
        found[plural] = plane.api.get(path)
    return found
