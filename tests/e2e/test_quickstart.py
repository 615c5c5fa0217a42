"""The quickstart on a cluster, as its pages tell: a user fills volumes, applies, watches, takes away.

A real pretrained model, the real images, the namespace of a team with restricted Pod Security,
quota and limits, and a user who has the role edit in it and nothing else.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import threading

import pytest

from harness.operator_driver import Watched
from harness.tenant import make_tenant
from harness.typed import ROOT, Reader, editor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TEAM = "workshop"
OUT = ROOT / "out" / "quickstart"
HEADER = ["NAME", "PHASE", "REASON", "PROGRESS", "LOSS", "ETA", "GPUS", "RESTARTS", "AGE"]


@pytest.fixture(scope="module")
def team(cluster):
    return make_tenant(cluster, TEAM, cpu="2")


@pytest.fixture(scope="module")
def reader(cluster, team, page_variables):
    return Reader(editor(cluster, team.namespace, "otto"), page_variables)


@pytest.fixture
def columns(team):
    """The rows of `kubectl get finetunejobs` as they change beside it all, by column."""
    rows, ended = [], threading.Event()

    def look():
        while not ended.wait(0.3):
            table = team.api.table(team.jobs)
            shown = [
                one["name"].upper() for one in table["columnDefinitions"] if not one["priority"]
            ]
            assert shown == HEADER
            for row in table["rows"]:
                found = dict(zip(shown, row["cells"], strict=False))
                if [*rows[-1:]] != [found]:
                    rows.append(found)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    yield rows
    ended.set()
    looking.join(10)


@pytest.fixture
def watched(team):
    """Every status that the job has."""
    found = Watched(team.api, team.namespace, "quickstart")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def model():
    """The model of the demo, fetched once."""
    fetch = ROOT / "examples" / "quickstart" / "fetch_model.py"
    subprocess.run([sys.executable, fetch], check=True, timeout=600)


def test_the_pages_from_volumes_to_a_model_that_answers(team, reader, model, columns, watched):
    del model
    shutil.rmtree(OUT, ignore_errors=True)
    reader.types("docs/use/fill-volumes.md")
    try:
        reader.types("docs/use/run-on-a-cluster.md")
        check_answers(OUT)
    finally:
        shutil.rmtree(OUT, ignore_errors=True)
    assert team.api.get(team.jobs)["items"] == []
    check_phases(watched.phases())
    check_columns(columns)


def check_phases(phases):
    """It was suspended once; how far it had come by then is a matter of chance."""
    usual = ["Pending", "Preparing", "Starting", "Running", "Publishing", "Succeeded"]
    assert [phase for phase in dict.fromkeys(phases) if phase in usual] == usual, phases
    assert "Suspended" in phases, phases


def check_columns(rows):
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
