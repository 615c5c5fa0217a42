"""One control plane for all tests of the layer, with the definitions of this checkout."""

import re

import pytest

from harness.control_plane import control_plane
from harness.definitions import apply_definitions
from harness.jobs import Jobs
from harness.operator_driver import make_namespace
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
    found = Outage(plane, tmp_path_factory.mktemp("outage")).begin()
    yield found
    found.abandon()


@pytest.fixture
def jobs(api, definitions, request):
    """A namespace for one test, named after it."""
    del definitions
    name = re.sub("[^a-z0-9]+", "-", request.node.name.lower())[-40:].strip("-")
    return Jobs(api, make_namespace(api, name))
