"""Runs ``LocalRun`` so that the process can be made to die at any write of its state."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from finetune_api.names import Layout
from finetune_cli.run import local
from finetune_cli.run.local import LocalRun, Pace
from finetune_cli.run.record import Metadata, Record, read_record
from finetune_cli.view import PlainView
from finetune_operator.observed import Live
from harness.simulation import UID, make_job

TRAINER = (sys.executable, "-I", str(Path(__file__).with_name("scripted_trainer.py")))


def run(folder: Path, spec: dict[str, Any], die_at: int, when: str) -> bool:
    """Run the job in ``folder``; the process kills itself before or after write ``die_at``."""
    layout = Layout(folder)
    job = make_job(spec)
    if layout.status.is_file():
        record = read_record(layout.status)
    else:
        metadata = Metadata(name="tiny", uid=UID, creation_timestamp="2026-01-01T00:00:00+00:00")
        record = Record(metadata=metadata, spec={}, resolved=job)
    writes = 0
    write = local.write_record

    def counted(path: Path, record: Record) -> None:
        nonlocal writes
        writes += 1
        if writes == die_at and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, record)
        if writes == die_at and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    local.write_record = counted
    runner = LocalRun(
        layout,
        record,
        Live.of(job.spec),
        PlainView(lambda line: print(line, flush=True)),
        pace=Pace(look=0.01, back_off=0.0),
        trainer=TRAINER,
        memory_events=folder.parent / "memory.events",
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, runner.interrupt)
    ended = runner.run()
    print(f"writes {writes}", flush=True)
    return ended
