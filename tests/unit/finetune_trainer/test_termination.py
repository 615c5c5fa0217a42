from __future__ import annotations

import json
from pathlib import Path

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


def test_it_is_written_where_the_environment_says(tmp_path: Path) -> None:
    path = tmp_path / "run" / "termination.json"
    termination.write(REPORT, {"FINETUNE_TERMINATION_LOG": str(path)})
    assert json.loads(path.read_text())["exitCode"] == 12
