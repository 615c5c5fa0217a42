"""Every reason that the operator gives stands on the reference page with its meaning."""

import ast
import re
from pathlib import Path
from typing import get_args

from finetune_api.reasons import ACTION, NORMAL
from finetune_api.status import FailureClass
from finetune_operator.waiting import ORDER

ROOT = Path(__file__).parents[2]
OPERATOR = ROOT / "operator" / "finetune_operator"
PLACES = {"Wait": 2, "Waiting": 0, "_Said": 2, "record": 2, "_refuse": 3, "_why": 1}
"""Calls with a reason, and which of their arguments it is."""
REASON = re.compile(r"[A-Z][a-z]+([A-Z][a-z]+)*")


def given():
    """Yield every reason that stands in the operator's source, with its file."""
    for file in sorted(OPERATOR.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = []
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in PLACES and len(node.args) > PLACES[name]:
                    parts.append(node.args[PLACES[name]])
            elif isinstance(node, ast.Assign) and "reason" in ast.unparse(node.targets[0]):
                parts.append(node.value)
            for part in parts:
                texts = [one.value for one in ast.walk(part) if isinstance(one, ast.Constant)]
                for text in texts:
                    if isinstance(text, str) and REASON.fullmatch(text):
                        yield text, file.name


def test_every_reason_is_explained():
    known = {*NORMAL, *ACTION, *get_args(FailureClass), "Refused"}
    found = dict(given()) | dict.fromkeys(ORDER, "waiting.py")
    assert len(found) > 45
    assert {reason: file for reason, file in found.items() if reason not in known} == {}


def test_no_reason_is_explained_that_nobody_gives():
    source = "\n".join(file.read_text(encoding="utf-8") for file in OPERATOR.rglob("*.py"))
    assert [reason for reason in (*NORMAL, *ACTION) if f'"{reason}"' not in source] == []
    assert not NORMAL.keys() & ACTION.keys()


def test_the_page_has_them():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    row = "| `BackendMissing` | the cluster has not the kind that spec.backend names |"
    assert row in page
    assert "- `WaitingForLastAttempt`: pods of an earlier try are still ending" in page
    for reason in (*NORMAL, *ACTION):
        assert f"`{reason}`" in page


def test_problems_whose_message_is_cut_to_a_length_are_on_the_page():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    row = "| `shared-memory-full` | no room in the shared memory of a node: … | raise resources.sh"
    assert row in page


def test_a_code_of_several_places_has_the_texts_of_all():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for row in (
        "| `empty-file` | … is empty | write at least one row |",
        "| `files-without-rows` | files of … without a row: … | copy them again, or remove them |",
        "| `model-weights-missing` | … has no *.safetensors | copy the weights beside config.json |",
        "| `model-weights-missing` | … has …, and neither … nor … | use the repository in the ",
        "| `context-not-found` | the kubeconfig has no context … | contexts: … |",
    ):
        assert row in page
    assert len(re.findall("^[|] `model-weights-missing`", page, re.MULTILINE)) == 2
