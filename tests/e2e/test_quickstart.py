"""The quickstart on a cluster, as its pages tell: a user fills volumes, applies, watches, takes away.

A real pretrained model, the real images, the namespace of a team with restricted Pod Security,
quota and limits, and a user who has the role edit in it and nothing else. The pages are typed beside
other tests: the first before pods of the node are ended, the second after that.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from http.client import HTTPException

import pytest

from harness.control_plane import ApiError
from harness.operator_driver import Watched
from harness.tenant import make_tenant
from harness.typed import ROOT, Reader, editor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TEAM = "workshop"
FILL, RUN = "docs/use/fill-volumes.md", "docs/use/run-on-a-cluster.md"
OUT = ROOT / "out" / "quickstart"
HEADER = ["NAME", "PHASE", "REASON", "PROGRESS", "LOSS", "ETA", "GPUS", "RESTARTS", "AGE"]


@pytest.fixture(scope="session")
def team(cluster):
    return make_tenant(cluster, TEAM, cpu="2")


@pytest.fixture(scope="session")
def reader(cluster, team, page_variables):
    return Reader(editor(cluster, team.namespace, "otto"), page_variables)


@pytest.fixture(scope="session")
def columns(team):
    """The rows of `kubectl get finetunejobs` as they change beside it all, by column."""
    rows, ended = [], threading.Event()

    def look():
        while not ended.wait(0.3):
            try:
                table = team.api.table(team.jobs)
            except (ApiError, OSError, HTTPException):  # one look that is missed
                continue
            shown = [
                one["name"].upper() for one in table["columnDefinitions"] if not one["priority"]
            ]
            for row in table["rows"]:
                found = dict(zip(shown, row["cells"], strict=False))
                if [*rows[-1:]] != [found]:
                    rows.append(found)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    yield rows
    ended.set()
    looking.join(10)


@pytest.fixture(scope="session")
def watched(team):
    """Every status that the job has."""
    found = Watched(team.api, team.namespace, "quickstart")
    yield found
    found.stop()


@pytest.fixture(scope="session")
def filled(demo_model, reader):
    """What the commands of the first page print, which are typed meanwhile."""
    demo_model()
    with reader.types_beside([FILL]) as printed:
        yield printed[FILL]


@pytest.fixture(scope="session")
def typed(filled, reader, columns, watched):
    """What the commands of the second page print, which are typed meanwhile."""
    del columns, watched  # they look on from the beginning
    filled.result()
    shutil.rmtree(OUT, ignore_errors=True)
    try:
        with reader.types_beside([RUN]) as printed:
            yield printed[RUN]
    finally:
        shutil.rmtree(OUT, ignore_errors=True)


def test_a_user_begins_with_three_claims(filled, team):
    """The rest of the page is typed while other tests run."""

    def made():
        claims = team.api.get(f"/api/v1/namespaces/{TEAM}/persistentvolumeclaims")["items"]
        return sorted(one["metadata"]["name"] for one in claims)

    team.wait(lambda: len(made()) == 3 or filled.done(), "the first command of the page")
    assert made() == ["datasets", "models", "output"], filled.result()


def test_the_volumes_are_filled(filled, team):
    assert filled.result()
    there = team.volume("models") / "smollm2-135m-instruct"
    assert sorted(one.name for one in there.iterdir()) == sorted(
        one.name for one in (ROOT / ".cache" / "models" / there.name).iterdir()
    )


def test_a_user_applies_the_job(typed, team):
    """The rest of the page is typed while other tests run."""

    def made():
        return [one["metadata"]["name"] for one in team.api.get(team.jobs)["items"]]

    team.wait(lambda: made() or typed.done(), "the second command of the page")
    assert made() == ["quickstart"], typed.result()


def test_the_page_from_the_job_to_a_model(team, typed, columns, watched):
    assert typed.result()
    assert team.api.get(team.jobs)["items"] == []
    check_phases(watched.phases())
    check_columns(columns)


def test_the_model_answers(typed):
    assert typed.result()
    check_answers(OUT)


def check_phases(phases):
    """It was suspended once; how far it had come by then is a matter of chance."""
    usual = ["Pending", "Preparing", "Starting", "Running", "Publishing", "Succeeded"]
    assert [phase for phase in dict.fromkeys(phases) if phase in usual] == usual, phases
    assert "Suspended" in phases, phases


def check_columns(rows):
    assert {tuple(row) for row in rows} == {tuple(HEADER)}
    running = [row for row in rows if row["PHASE"] == "Running" and row["PROGRESS"]]
    percents = [int(row["PROGRESS"].removesuffix("%")) for row in running]
    assert percents == sorted(percents)
    assert 0 < percents[-1] <= 100
    losses = [float(row["LOSS"]) for row in running if row["LOSS"]]
    assert losses[-1] < losses[0]
    assert any(row["ETA"] for row in running)
    last = rows[-1]
    assert (last["NAME"], last["PHASE"], last["REASON"]) == ("quickstart", "Succeeded", "")
    # It was suspended and went on: what the user stopped is no restart.
    assert (last["PROGRESS"], last["RESTARTS"], last["GPUS"]) == ("100%", None, None)


def check_answers(folder):
    """Ask the published model, in a process of its own, what the demo asks."""
    questions = demo().QUESTIONS
    program = (
        "import sys, json; from pathlib import Path; from finetune_trainer import generate\n"
        "generate.run(Path(sys.argv[1]), json.loads(sys.argv[2]), max_new_tokens=40)"
    )
    asked = subprocess.run(
        [sys.executable, "-c", program, folder, json.dumps(list(questions))],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    for answer, words in zip(answers, questions.values(), strict=True):
        assert words in answer["answer"], answer
        assert answer["stopped"], answer
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["merged"] is True
    assert manifest["evaluationAfter"]["loss"] < manifest["evaluationBefore"]["loss"]


def demo():
    path = ROOT / "examples" / "quickstart" / "demo.py"
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location("demo_of_the_quickstart", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
