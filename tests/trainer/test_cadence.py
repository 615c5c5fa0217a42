"""By the clock of rank 0, all ranks save the same steps, and each once."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from finetune_api.names import MANIFEST
from harness.trainer_runs import STEPS, Driver, make_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_saves_by_the_clock(driver: Driver, tmp_path: Path) -> None:
    checkpoint = {"everySteps": None, "maxLostWork": "1ms", "maxOverhead": 0.99, "keep": 100}
    job = make_job(tmp_path, "lora", "ddp", {"checkpoint": checkpoint})
    run = driver.start(job)
    assert run.wait() == 0, run.tail()
    saved = [int(path.rpartition("-")[2]) for path in job.saved()]
    assert saved[-1] == STEPS
    # A save is wanted at the end of one step and agreed on during the next: every other step here.
    assert len(saved) >= 4
    assert all(after - before >= 2 for before, after in pairwise(saved[:-1]))
    for step in saved:
        manifest = json.loads((job.layout.checkpoint(1, step) / MANIFEST).read_text())
        assert manifest["reason"] == ("end" if step == STEPS else "cadence")
        ranks = {entry["path"]: entry["rank"] for entry in manifest["files"]}
        assert ranks["rng_state_0.pth"] == 0
        assert ranks["rng_state_1.pth"] == 1
