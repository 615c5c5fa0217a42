"""Two gangs on one workspace: the older one stops at the fence and changes nothing of the newer."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from harness.checkpoint_folders import contents
from harness.trainer_runs import Driver, Job, hold, release

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def job(prepared: Job, tmp_path: Path) -> Job:
    return prepared.copy(tmp_path)


def of_the_newer(job: Job) -> dict[str, bytes]:
    """All but what the older gang's claim holds: its folder, its reports and its logs."""
    own = ("checkpoints/1/step-8", "reports/1/", "logs/train-1")
    return {k: v for k, v in contents(job.layout.root).items() if not k.startswith(own)}


def test_the_older_wakes_up_after_the_newer_has_finished(job: Job, driver: Driver) -> None:
    held = hold(job.layout.checkpoint(1, 8) / "trainer_state.json")
    older = driver.start(job)
    older.until(held.with_name("scheduler.pt").exists, "the save of step 8")
    older.stop_all()
    newer = driver.start(job, attempt=2)
    assert newer.wait() == 0, newer.tail()
    assert job.saved() == ["1/step-4", "2/step-8", "2/step-12"]
    before = of_the_newer(job)
    older.signal_all(signal.SIGCONT)
    assert older.wait() == ExitCode.FENCED == 21, older.tail()
    assert of_the_newer(job) == before
    assert job.saved() == ["1/step-4", "2/step-8", "2/step-12"]
    report = job.end(1)
    assert report.exit_code == 21
    assert report.problems[0].code == "fenced"
    assert report.checkpoint is not None
    assert report.checkpoint.step == 4


def test_the_older_wakes_up_before_its_commit_while_the_newer_saves(
    job: Job, driver: Driver
) -> None:
    held = hold(job.layout.checkpoint(1, 8) / "trainer_state.json")
    older = driver.start(job)
    older.until(held.with_name("scheduler.pt").exists, "the save of step 8")
    older.stop_all()
    held_too = hold(job.layout.checkpoint(2, 8) / "trainer_state.json")
    newer = driver.start(job, attempt=2)
    newer.until(held_too.with_name("scheduler.pt").exists, "its own save of step 8")
    newer.stop_all()
    before = of_the_newer(job)
    release(older, held)
    assert older.wait() == ExitCode.FENCED, older.tail()
    # The older gang wrote all its files, and stopped before the manifest.
    assert (held.parent / "rng_state_1.pth").exists()
    assert held.is_file()
    assert job.saved() == ["1/step-4"]
    assert of_the_newer(job) == before
    release(newer, held_too)
    assert newer.wait() == 0, newer.tail()
    assert job.saved() == ["1/step-4", "2/step-8", "2/step-12"]
    assert not held.parent.exists()
