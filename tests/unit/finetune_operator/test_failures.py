"""What ends mean: the precedence, the budgets, the back-off."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from finetune_api.problem import Problem
from finetune_api.reports import TerminationReport
from finetune_operator.failures import ROWS, back_off, classify
from finetune_operator.observed import EndReason, ProcessEnd
from harness.stage_config import UID

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def end(
    code: int | None, reason: EndReason | None = None, *, after: float = 0, name: str = "w"
) -> ProcessEnd:
    return ProcessEnd(name=name, at=NOW + timedelta(seconds=after), exit_code=code, reason=reason)


@pytest.mark.parametrize(
    ("ends", "class_", "budget"),
    [
        ([end(11), end(137, "OOMKilled")], "InvalidData", "failure"),
        ([end(10), end(137, "DisruptionTarget")], "InvalidConfig", "failure"),
        ([end(12), end(1)], "OutOfMemory", "failure"),
        ([end(143, "DisruptionTarget"), end(137, "OOMKilled")], "OutOfMemory", "failure"),
        ([end(137), end(143, "DisruptionTarget")], "Preempted", "preemption"),
        ([end(1), end(137, "Evicted")], "Preempted", "preemption"),
        ([end(1), end(143, "NodeLost")], "LostInfrastructure", "preemption"),
        ([end(1), end(None)], "LostInfrastructure", "preemption"),
        ([end(20), end(1)], "Crashed", "failure"),
        ([end(20), end(137)], "Crashed", "failure"),
        ([end(20), end(139)], "Crashed", "failure"),
        ([end(143), end(20)], "CommunicationLost", "failure"),
        ([end(0), end(143)], "Preempted", "preemption"),
        ([end(137, "EvictedOwnLimits"), end(143, "DisruptionTarget")], "Evicted", "failure"),
        ([end(21), end(137, "OOMKilled")], "Fenced", "failure"),
        ([end(13), end(21)], "NonFiniteLoss", "failure"),
        ([end(14, "DisruptionTarget")], "StorageFull", "failure"),
    ],
)
def test_precedence(ends: list[ProcessEnd], class_: str, budget: str) -> None:
    for order in (ends, ends[::-1]):
        cause = classify("train", order)
        assert cause is not None
        assert (cause.class_, cause.budget) == (class_, budget)


def test_among_equals_the_earliest_end_is_the_cause() -> None:
    ends = [end(1, after=5, name="w0"), end(1, after=2, name="w1"), end(1, after=9, name="w2")]
    cause = classify("train", ends)
    assert cause is not None
    assert cause.process == "w1"


def test_success_needs_every_process() -> None:
    assert classify("train", [end(0), end(0)]) is None


@pytest.mark.parametrize(
    ("stage", "class_", "device", "retried"),
    [("prepare", "DoesNotFit", False, False), ("train", "OutOfMemory", True, False)],
)
def test_does_not_fit_before_and_out_of_memory_while_training(
    stage: str, class_: str, device: bool, retried: bool
) -> None:
    cause = classify(stage, [end(12)])  # type: ignore[arg-type]
    assert cause is not None
    assert (cause.class_, cause.device, cause.retried) == (class_, device, retried)


def test_the_trainers_own_problem_is_what_the_user_reads() -> None:
    problem = Problem(
        code="no-assistant-turn", message="no answer", fix="add it", file="train.jsonl", line=41
    )
    report = TerminationReport(stage="prepare", job_uid=UID, exit_code=11, problems=(problem,))
    cause = classify("prepare", [ProcessEnd(name="p", at=NOW, exit_code=11, report=report)])
    assert cause is not None
    assert (cause.code, cause.message, cause.fix) == (
        "no-assistant-turn",
        "train.jsonl:41: no answer",
        "add it",
    )


def test_a_report_of_another_end_is_not_believed() -> None:
    """The supervisor wrote 143; the kernel then killed it."""
    problem = Problem(code="asked-to-stop", message="asked to stop")
    report = TerminationReport(stage="train", job_uid=UID, exit_code=143, problems=(problem,))
    cause = classify("train", [ProcessEnd(name="p", at=NOW, exit_code=137, report=report)])
    assert cause is not None
    assert cause.code == "crashed"


def test_back_off_doubles_from_ten_seconds_to_ten_minutes() -> None:
    for restarts, shortest in ((1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 320)):
        assert shortest <= back_off(UID, 7, restarts) <= shortest * 1.25
    assert back_off(UID, 7, 7) == 600
    assert back_off(UID, 7, 10**9) == 600
    assert back_off(UID, 7, 0) == back_off(UID, 7, 1)


def test_back_off_is_the_same_at_every_look_and_spread_over_jobs() -> None:
    assert back_off(UID, 2, 1) == back_off(UID, 2, 1)
    assert len({back_off(f"job-{n}", 2, 1) for n in range(50)}) == 50


def test_every_row_that_is_not_retried_says_what_to_do() -> None:
    for class_, row in ROWS.items():
        assert row.fix or row.retried or class_ == "NotAccepted", class_
