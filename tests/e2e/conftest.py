"""One cluster for all tests of the layer, with the built images and the chart installed.

Two cores serve all pods, and half of the time of a job is waited for something: so jobs of one test run
beside another's where neither disturbs the other, and what takes long is begun by one test and looked at
by another.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import chart
from harness.cluster import Cluster
from harness.cluster import cluster as running_cluster
from harness.commands import run
from harness.control_plane import until
from harness.disturbed import ONCE, SPEC
from harness.images import REGISTRY, Image, operator_image, trainer_image
from harness.installation import install_operator
from harness.stage_config import merged
from harness.tenant import Kept, Tenant, fill, make_tenant
from harness.tiny_model import make_tiny_model
from harness.typed import ROOT

OWN_CLUSTER = "test_cluster_leaves_nothing"
DEMO = "test_quickstart"
ORDER = (
    "test_broken_input",
    "test_logs",  # beside jobs that train, to which it is nothing that the API server ends
    "test_quickstart::test_a_user_begins_with_three_claims",
    "test_preemption",
    "test_quickstart::test_the_volumes_are_filled",  # before the node's pods are ended
    "test_disruptions",
    "test_split_brain::test_a_node_is_cut_off",
    # Minutes pass until others may take over what ran there: meanwhile, what needs no node.
    "test_rights",
    "test_images",
    "test_node_images",
    "test_split_brain::test_a_gang_that_comes_back_is_fenced",
    # From here on pages are typed while the second gang trains and other tests run.
    "test_pages::test_a_user_applies_a_job",
    "test_quickstart::test_a_user_applies_the_job",
    "test_split_brain",
    "test_node",
    "test_pages",
    "test_quickstart",
)
MAINTENANCE = "example.com/maintenance"
VALUES: dict[str, Any] = {
    # What runs the cluster stays on a node that is emptied.
    "tolerations": [
        {"key": key, "operator": "Exists", "effect": "NoExecute"}
        for key in (
            MAINTENANCE,
            *(f"node.kubernetes.io/{how}" for how in ("not-ready", "unreachable")),
        )
    ],
    # Progress is seen in jobs that take less than the usual minute.
    "settings": {"progressSeconds": 5},
}

_START_SECONDS = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests that start a cluster of their own go first: there is room for one at a time."""

    def place(item: pytest.Item) -> tuple[bool, int]:
        module = item.path.stem
        names = (f"{module}::{item.name}", module)
        late = next((ORDER.index(name) for name in names if name in ORDER), len(ORDER))
        return module != OWN_CLUSTER, late

    items.sort(key=place)
    first = next((one for one in items if "cluster" in getattr(one, "fixturenames", ())), None)
    if first is not None:  # it waits for the cluster too: minutes when the images are new
        own = first.get_closest_marker("timeout")
        first.add_marker(pytest.mark.timeout(_START_SECONDS + (own.args[0] if own else 300)))


@pytest.fixture(scope="session", autouse=True)
def demo_model(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Fetch the model of the demo once, from the beginning; returns what waits for it."""
    fetch = [sys.executable, ROOT / "examples" / "quickstart" / "fetch_model.py"]
    wanted = any(item.path.stem == DEMO for item in request.session.items)
    fetching = subprocess.Popen(fetch) if wanted else None

    def there() -> None:
        assert fetching is not None
        assert fetching.wait(600) == 0

    try:
        yield there
    finally:
        if fetching is not None:
            fetching.kill()
            fetching.wait(10)


@pytest.fixture(scope="session")
def images() -> tuple[Image, Image]:
    """The operator's image and the trainer's."""
    return operator_image(), trainer_image()


@pytest.fixture(scope="session")
def cluster(images: tuple[Image, Image]) -> Iterator[Cluster]:
    """A running cluster, with the operator in a pod of its own under the chart's rights."""
    with running_cluster([*images, images[0].tagged("next")]) as c:
        install_operator(c, *images, VALUES)
        yield c


@pytest.fixture(scope="session")
def upgrade(cluster: Cluster, images: tuple[Image, Image]) -> Callable[[], None]:
    """Replace the operator by its image under another tag, as a next version comes."""
    operator, trainer = images
    return lambda: install_operator(cluster, operator.tagged("next"), trainer, VALUES)


@pytest.fixture(scope="session")
def page_variables(cluster: Cluster, images: tuple[Image, Image]) -> dict[str, str]:
    """Where and as what the images are kept, under the names that the pages use."""
    ctr = ("ctr", "--address", cluster.runtime.socket, "--namespace", "k8s.io")
    for image, name in zip(images, ("finetune-operator", "finetune-trainer"), strict=True):
        copied = f"{REGISTRY}/{name}:pages"
        run(*ctr, "images", "tag", "--force", image.reference, copied)
    return {"REGISTRY": REGISTRY, "VERSION": "pages"}


@pytest.fixture(scope="session")
def operator_pod(cluster: Cluster) -> Callable[[], dict[str, Any]]:
    """Return the operator's pod as it is now."""

    def now() -> dict[str, Any] | None:
        pods = cluster.api.get(f"/api/v1/namespaces/{chart.NAMESPACE}/pods")["items"]
        found = [
            one
            for one in pods
            if "deletionTimestamp" not in one["metadata"]
            and one["status"].get("phase") == "Running"
        ]
        return dict(found[0]) if len(found) == 1 else None

    return lambda: dict(until(now, "one pod of the operator runs"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of two layers with dropout, so that a wrong resume is seen."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", dropout=0.1)


@pytest.fixture(scope="session")
def tenant(cluster: Cluster, tiny_model: Path) -> Tenant:
    """A team's namespace; in it two jobs train from the start that nobody disturbs."""
    team = make_tenant(cluster, "team")
    fill(team, tiny_model)
    team.start("twin", merged(SPEC, {"resources": {"accelerator": {"perNode": 4}}}))
    team.start("short-twin", merged(ONCE, {"resources": {"accelerator": {"perNode": 0}}}))
    return team


@pytest.fixture(scope="session")
def twin(tenant: Tenant) -> Callable[[], Kept]:
    """Wait for the undisturbed job of all steps; returns what it left."""
    return lambda: undisturbed(tenant, "twin")


@pytest.fixture(scope="session")
def short_twin(tenant: Tenant) -> Callable[[], Kept]:
    """Wait for the undisturbed job of few steps; returns what it left."""
    return lambda: undisturbed(tenant, "short-twin")


def undisturbed(tenant: Tenant, name: str) -> Kept:
    status = tenant.finished(name, 600)
    counted = (status["outcome"], status["attempt"], status["failures"], status["preemptions"])
    assert counted == ("Succeeded", 1, 0, 0), status.get("lastFailure")
    return tenant.kept(name)
