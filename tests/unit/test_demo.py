"""What the demo claims of its data and of the processes it kills."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "examples" / "datasets"


@pytest.fixture(autouse=True)
def quickstart_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "quickstart"))


def rows(name: str) -> dict[str, str]:
    """Return question -> answer of a file of one-turn conversations."""
    found = {}
    for line in (DATA / name).read_text(encoding="utf-8").splitlines():
        question, answer = json.loads(line)["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert question["content"] not in found
        found[question["content"]] = answer["content"]
    return found


def test_questions_of_the_demo_are_taught_in_other_words() -> None:
    import demo

    train, validation = rows("workshop-train.jsonl"), rows("workshop-validation.jsonl")
    assert (len(train), len(validation)) == (60, 12)
    assert not set(train) & set(validation)
    assert [question in train for question in demo.QUESTIONS] == [True, False, False, False]
    for words in demo.QUESTIONS.values():
        assert sum(words in answer for answer in train.values()) >= 7


def test_killing_reaches_grandchildren() -> None:
    from processes import descendants, kill_all

    grandchild = "import time; time.sleep(60)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    with subprocess.Popen([sys.executable, "-c", child]) as process:
        deadline = time.monotonic() + 30
        while len(found := descendants(process.pid)) < 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(found) == 1
        kill_all([*found, process.pid, *found])
        assert process.wait(timeout=30) == -9
    while any(alive(pid) for pid in found):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Tell whether a process still runs; one that has ended may wait to be reaped."""
    try:
        return b"time.sleep(60)" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_model_that_is_there_is_not_fetched_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fetch_model

    (tmp_path / fetch_model.MARK).touch()
    monkeypatch.setattr(fetch_model, "LOCK", tmp_path / "no-such-lock")
    assert fetch_model.fetch(tmp_path) == tmp_path
    assert capsys.readouterr().out == f"model: SmolLM2-135M-Instruct is in {tmp_path}\n"
