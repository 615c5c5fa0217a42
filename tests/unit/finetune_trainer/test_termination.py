from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_api.checkpoint import Rejected
from finetune_api.problem import Problem
from finetune_api.reports import TerminationReport
from finetune_trainer import termination

LONG = Problem(code="x", message="m" * 1024, fix="f" * 1024, file="d/" * 500 + "train.jsonl")
REPORT = TerminationReport(stage="train", job_uid="u", exit_code=12, message="out of memory")


def parsed(data: bytes) -> TerminationReport:
    return TerminationReport.model_validate_json(data)


def test_a_short_report_is_kept_whole() -> None:
    assert parsed(termination.fitted(REPORT)) == REPORT


def test_a_long_one_loses_details_and_keeps_the_cause() -> None:
    long = REPORT.model_copy(
        update={
            "problems": (LONG, LONG, LONG),
            "rejected": tuple(
                Rejected(path="p" * 1024, step=1, reason="r" * 512) for _ in range(3)
            ),
        }
    )
    data = termination.fitted(long)
    assert len(data) < 4096
    kept = parsed(data)
    assert (kept.exit_code, kept.message) == (12, "out of memory")
    assert [problem.code for problem in kept.problems] == ["x"]
    assert len(kept.problems[0].message) == 300


def test_bytes_count_and_not_letters() -> None:
    problem = Problem(code="x", message="\N{SNOWMAN}" * 1024, fix="\N{SNOWMAN}" * 1024)
    report = REPORT.model_copy(update={"problems": (problem,) * 3, "message": "\N{SNOWMAN}" * 512})
    data = termination.fitted(report)
    assert len(data) < 4096
    assert parsed(data).exit_code == 12


@pytest.mark.parametrize(
    ("letter", "said", "message", "fix"),
    [("\N{SNOWMAN}", 100, 200, 150), ("\N{GRINNING FACE}", 75, 150, 112), ("\x01", 50, 100, 75)],
)
def test_words_of_any_script_are_cut_and_never_left_out(
    letter: str, said: int, message: int, fix: int
) -> None:
    """300 bytes of what happened, 600 and 450 of the problem; a control character is six in JSON."""
    problem = Problem(code="x", message=letter * 1024, fix=letter * 1024, file=letter * 400 + ".py")
    report = REPORT.model_copy(
        update={"message": letter * 512, "problems": (problem,) * 3, "evaluation": {"loss": 1.0}}
    )
    data = termination.fitted(report)
    assert len(data) < 4096
    kept = parsed(data)
    assert (kept.exit_code, kept.message) == (12, letter * said)
    (first,) = kept.problems
    assert (first.code, first.message, first.fix) == ("x", letter * message, letter * fix)
    assert first.file is not None
    assert first.file.endswith(letter + ".py")


def test_it_is_written_where_the_environment_says(tmp_path: Path) -> None:
    path = tmp_path / "run" / "termination.json"
    termination.write(REPORT, {"FINETUNE_TERMINATION_LOG": str(path)})
    assert json.loads(path.read_text())["exitCode"] == 12
