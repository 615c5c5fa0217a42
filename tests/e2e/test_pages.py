"""The commands of the other pages for users, typed in order, on a model of two layers."""

import shutil

import pytest

from harness.tenant import make_readable, make_tenant
from harness.typed import ROOT, Reader, editor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def reader(cluster, tiny_model, page_variables):
    """A user whose volumes are filled as the pages say, but for the size of the model."""
    team = make_tenant(cluster, "reader")
    models = team.claim("models")
    shutil.copytree(tiny_model, models / MODEL)
    make_readable(models)
    shutil.copytree(ROOT / "examples" / "datasets", team.claim("datasets"), dirs_exist_ok=True)
    team.claim("output")
    return Reader(editor(cluster, team.namespace, "rita"), page_variables)


@pytest.mark.parametrize("page", ["docs/use/preemption.md", "docs/use/fix-a-failed-job.md"])
def test_a_page_for_users(reader, page):
    assert reader.types(page, timeout=300)
