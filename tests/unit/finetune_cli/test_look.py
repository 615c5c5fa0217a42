"""What is seen of a job while its processes end under the looking eyes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from finetune_api.job import JobSpec
from finetune_api.names import Layout
from finetune_api.reports import PrepareReport
from finetune_api.resolved import ResolvedJob
from finetune_cli.run import look
from finetune_cli.run.processes import Kept
from finetune_cli.run.record import LocalChild, Metadata, Record
from finetune_operator.observed import Live
from harness.simulation import make_choices
from harness.stage_config import SPEC, UID


def test_a_preparation_is_never_seen_ended_without_its_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends in the middle of a look: after the look began, before its end is looked for."""
    layout = Layout(tmp_path)
    files = {what: str(tmp_path / f"{what}.json") for what in ("pid", "end", "said")}
    kept = Kept(
        name="tiny-prepare",
        node=0,
        pid=1,
        start=0,
        boot="none",
        started_file=files["pid"],
        end_file=files["end"],
        report_file=files["said"],
    )
    record = Record(
        metadata=Metadata(name="tiny", uid=UID, creation_timestamp="2026-01-01T00:00:00Z"),
        spec=SPEC,
        resolved=ResolvedJob(
            name="tiny", namespace="default", uid=UID, spec=JobSpec.model_validate(SPEC)
        ),
        children=(
            LocalChild(
                name="tiny-prepare",
                uid="one",
                stage="prepare",
                kept=(kept,),
                started_at="2026-01-01T00:00:00+00:00",
            ),
        ),
    )
    choices = make_choices()

    def ends_now(_: Any) -> bool:
        layout.reports.mkdir(exist_ok=True)
        report = PrepareReport(job_uid=UID, choices=choices)
        layout.prepare_report.write_text(json.dumps(report.to_json()))
        end = {"exitCode": 0, "at": datetime.now(UTC).isoformat(), "oomKilled": False}
        Path(files["end"]).write_text(json.dumps(end))
        return False

    monkeypatch.setattr(look, "alive", ends_now)
    seen = look.observe(record, layout, Live())
    assert [end.exit_code for end in seen.children[0].ends] == [0]
    assert seen.choices == choices
