"""One control plane for all tests of the layer, with the definitions of this checkout."""

import pytest

from harness.control_plane import control_plane
from harness.definitions import apply_definitions
from harness.jobs import Jobs, job_object, namespace_for
from harness.operator_driver import JOBS
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
def namespace(api, definitions, request):
    """A namespace for one test, named after it."""
    del definitions
    return namespace_for(api, request.node.name)


@pytest.fixture
def jobs(api, namespace):
    """The jobs of that namespace."""
    return Jobs(api, namespace)


@pytest.fixture
def job(api, namespace):
    """A job ``bot`` in that namespace, which no operator looks at."""
    return api.create(JOBS.format(namespace=namespace), job_object("bot"))
