"""What is killed, stopped or starved in the middle leaves nothing half-done that counts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.names import MANIFEST
from harness.checkpoint_folders import contents
from harness.trainer_runs import ENGINES, STEPS, Driver, Job, hold, release, waits_at_a_pipe, wakes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_one_rank_killed_ends_the_attempt(prepared: Job, driver: Driver, tmp_path: Path) -> None:
    job = prepared.copy(tmp_path)
    held = hold(job.layout.checkpoint(1, 8) / "trainer_state.json")
    run = driver.start(job)
    run.until(held.with_name("optimizer.pt").exists, "the save of step 8")
    os.kill(run.ranks()[1], signal.SIGKILL)
    release(run, held)
    assert run.wait() == ExitCode.KILLED == 137, run.tail()
    assert run.ranks() == []
    assert job.saved() == ["1/step-4"]
    assert job.end(1).exit_code == 137
    again = driver.start(job, attempt=2)
    assert again.wait() == 0, again.tail()
    claim = job.claim(2)
    assert claim.resumes_from is not None
    assert claim.resumes_from.path == "checkpoints/1/step-4"


def test_a_signal_during_a_save_lets_it_finish(
    prepared: Job, driver: Driver, tmp_path: Path
) -> None:
    job = prepared.copy(tmp_path)
    held = hold(job.layout.checkpoint(1, 4) / "trainer_state.json")
    run = driver.start(job)
    run.until(held.with_name("scheduler.pt").exists, "the save of step 4")
    first = run.ranks()[0]
    # It may still write the file before; only from here on it wakes for nothing but a signal.
    run.until(lambda: waits_at_a_pipe(first), "rank 0 sleeps in its save")
    asleep = wakes(first)
    os.kill(run.pid, signal.SIGTERM)
    run.until(lambda: wakes(first) > asleep, "rank 0, asleep in its save, hears the signal")
    assert job.saved() == []
    release(run, held)
    assert run.wait() == ExitCode.SIGNALLED == 143, run.tail()
    # The agreement is read one micro-batch after it was made, so that one more step may be saved.
    saved = job.saved()
    assert saved[0] == "1/step-4"
    assert len(saved) <= 2
    report = job.end(1)
    assert report.exit_code == 143
    assert report.checkpoint is not None
    assert f"checkpoints/{saved[-1]}" == report.checkpoint.path
    assert [step for _, step, _ in job.samples()] == list(range(1, report.checkpoint.step + 1))
    assert report.checkpoint.step < STEPS


@pytest.mark.parametrize(
    ("engine", "file"),
    [
        ("ddp", "trainer_state.json"),
        ("ddp", "rng_state_1.pth"),
        # DeepSpeed's ranks wait for each other when they have written.
        ("zero-2", "global_step8/zero_pp_rank_1_mp_rank_00_optim_states.pt"),
    ],
)
def test_a_full_volume_ends_with_14_and_older_checkpoints_stay(
    prepared: Job, driver: Driver, tmp_path: Path, engine: str, file: str
) -> None:
    job = prepared.copy(tmp_path, parallelism=ENGINES[engine])
    folder = job.layout.checkpoint(1, 8)
    (folder / file).parent.mkdir(parents=True)
    (folder / file).symlink_to("/dev/full")  # every write there says that the device is full
    run = driver.start(job)
    run.until((job.layout.checkpoint(1, 4) / MANIFEST).exists, "the save of step 4")
    older = contents(job.layout.checkpoint(1, 4))
    assert run.wait() == ExitCode.STORAGE_FULL == 14, run.tail()
    report = job.end(1)
    assert report.problems[0].code == "storage-full"
    assert "bytes are free in the workspace" in report.problems[0].message
    assert report.checkpoint is not None
    assert report.checkpoint.step == 4
    assert contents(job.layout.checkpoint(1, 4)) == older
    assert not folder.exists(), "the room of the save that failed was not given back"
    assert os.path.exists("/dev/full")


def test_ranks_do_not_outlive_their_supervisor(
    prepared: Job, driver: Driver, tmp_path: Path
) -> None:
    job = prepared.copy(tmp_path)
    run = driver.start(job)
    run.until(job.reached(1), "the first step")
    pids = run.ranks()
    assert len(pids) == 2
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() == ExitCode.KILLED
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
