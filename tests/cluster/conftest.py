"""One control plane for all tests of the layer, with the definitions of this checkout."""

import pytest

from harness.control_plane import control_plane
from harness.definitions import apply_definitions
from harness.outage import Outage


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
    return apply_definitions(plane)


@pytest.fixture(scope="session")
def outage(plane, definitions, tmp_path_factory):
    """Two minutes without the API server for an operator of its own; begun by who asks first."""
    del definitions
    return Outage(plane, tmp_path_factory.mktemp("outage")).begin()
