"""What a long pass says on its way, and what a finished preparation says in one line."""

from __future__ import annotations

import pytest

from finetune_api.reports import DataReport, MemoryReport, PrepareReport
from finetune_trainer import prepare
from finetune_trainer.data import ticker


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(ticker.time, "monotonic", lambda: now[0])
    return now


def test_a_short_pass_says_nothing(clock, capsys):
    with ticker.Ticker("checking") as pass_:
        for _ in range(5000):
            pass_.tick()
    assert capsys.readouterr().err == ""


def test_a_long_pass_says_a_line_now_and_then(clock, capsys):
    with ticker.Ticker("tokenising", 4096) as pass_:
        for row in range(4096):
            clock[0] = row / 100
            pass_.tick()
    assert capsys.readouterr().err == (
        "tokenising: 1,024 of 4,096 rows, 100 rows/s\ntokenising: 4,096 of 4,096 rows, 100 rows/s\n"
    )


@pytest.mark.parametrize(
    ("memory", "text"),
    [
        (
            MemoryReport(verdict="Fits", predicted_bytes=61 * 2**30, available_bytes=80 * 2**30),
            "14,212 rows, 9.8M trained tokens (31%), 3 dropped; needs 61.0 GiB of 80.0 GiB a rank",
        ),
        (None, "14,212 rows, 9.8M trained tokens (31%), 3 dropped"),
    ],
)
def test_the_summary(memory, text):
    train = DataReport(
        rows=14_215,
        rows_used=14_212,
        rows_dropped=3,
        sequences=14_212,
        tokens=31_600_000,
        trained_tokens=9_800_000,
    )
    report = PrepareReport(job_uid="x", train=train, memory=memory)
    assert prepare.summary(report) == text
