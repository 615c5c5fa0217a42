"""One cluster for all tests of the layer, with the built images and the chart installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cluster import Cluster
from harness.cluster import cluster as running_cluster
from harness.images import Image, operator_image, trainer_image
from harness.installation import install_operator
from harness.tiny_model import make_tiny_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests that start a cluster of their own go first: there is room for one at a time."""
    items.sort(key=lambda item: "cluster" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def images() -> tuple[Image, Image]:
    """The operator's image and the trainer's."""
    return operator_image(), trainer_image()


@pytest.fixture(scope="session")
def cluster(images: tuple[Image, Image]) -> Iterator[Cluster]:
    """A running cluster, with the operator in a pod of its own under the chart's rights."""
    with running_cluster(images) as c:
        install_operator(c, *images)
        yield c


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of two layers with dropout, so that a wrong resume is seen."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", dropout=0.1)
