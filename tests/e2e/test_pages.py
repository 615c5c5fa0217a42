"""The commands of the other pages for users, typed in order, on a model of two layers."""

import shutil

import pytest

from harness.tenant import make_readable, make_tenant
from harness.typed import ROOT, Reader, editor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGES = ("docs/use/preemption.md", "docs/use/fix-a-failed-job.md")
MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def readers(cluster):
    return make_tenant(cluster, "reader")


@pytest.fixture(scope="session")
def typed(cluster, readers, tiny_model, page_variables):
    """What the commands of each page print, which are typed beside other tests.

    The user's volumes are filled as the pages say, but for the size of the model.
    """
    team = readers
    models = team.claim("models")
    shutil.copytree(tiny_model, models / MODEL)
    make_readable(models)
    shutil.copytree(ROOT / "examples" / "datasets", team.claim("datasets"), dirs_exist_ok=True)
    team.claim("output")
    reader = Reader(editor(cluster, team.namespace, "rita"), page_variables)
    with reader.types_beside(PAGES, timeout=300) as printed:
        yield printed


def test_a_user_applies_a_job(readers, typed):
    """The rest of the pages is typed while other tests run."""

    def made():
        return [one["metadata"]["name"] for one in readers.api.get(readers.jobs)["items"]]

    readers.wait(lambda: made() or typed[PAGES[0]].done(), "the first command of the first page")
    assert made() == ["quickstart"], typed[PAGES[0]].result()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_for_users(typed, page):
    assert typed[page].result()
