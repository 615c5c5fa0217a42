"""A run that was interrupted ends with the very same weights as one that was not.

Two ranks on the CPU, dropout on, gradient accumulation 2, packing on; 12 steps in two epochs of 6,
saved at 4, 8 and 12, evaluated at every third step. "Interrupted" is a SIGTERM in the middle of an epoch, a SIGKILL of everything
in the middle of a step, or one in the middle of a save.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from finetune_api.names import MANIFEST
from harness.trainer_runs import (
    ENGINES,
    METHODS,
    SAVE_EVERY,
    STEPS,
    Driver,
    Job,
    hold,
    make_job,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JOBS = [pytest.param((m, e), id=f"{m}-{e}") for m in METHODS for e in ENGINES]


@pytest.fixture(scope="module", params=JOBS)
def undisturbed(
    request: pytest.FixtureRequest, driver: Driver, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Job, Job]:
    """A prepared job, and a copy of it that ran to its end without an interruption."""
    method, engine = request.param
    return run_undisturbed(driver, tmp_path_factory.mktemp(f"{method}-{engine}"), method, engine)


def run_undisturbed(
    driver: Driver, root: Path, method: str, engine: str, precision: str = "fp32"
) -> tuple[Job, Job]:
    training = {"epochs": 2, "maxSteps": STEPS, "learningRate": 5e-3, "precision": precision}
    job = make_job(root / "prepared", method, engine, {"training": training})
    (root / "undisturbed").mkdir()
    ran = job.copy(root / "undisturbed")
    run = driver.start(ran)
    assert run.wait() == 0, run.tail()
    assert ran.saved() == ["1/step-4", "1/step-8", "1/step-12"]
    assert [step for _, step, _ in ran.samples()] == list(range(1, STEPS + 1))
    return job, ran


def finish(driver: Driver, job: Job) -> None:
    run = driver.start(job, attempt=2)
    assert run.wait() == 0, run.tail()


def assert_same(job: Job, undisturbed: Job, resumed_from: int) -> None:
    """Weights are bit-equal; every step's samples are; only unsaved steps were trained twice."""
    assert job.final_weights() == undisturbed.final_weights()
    evaluation = undisturbed.end(1).evaluation
    assert evaluation["loss"] > 0
    assert job.end(2).evaluation == evaluation
    assert (undisturbed.end(1).loss or 0) > 0
    assert job.end(2).loss == undisturbed.end(1).loss
    expected = {step: digest for _, step, digest in undisturbed.samples()}
    trained = job.samples()
    assert all(digest == expected[step] for _, step, digest in trained)
    first = [step for claim, step, _ in trained if claim == 1]
    second = [step for claim, step, _ in trained if claim == 2]
    assert first == list(range(1, len(first) + 1))
    assert second == list(range(resumed_from + 1, STEPS + 1))
    assert len(first) >= resumed_from


def stopped_within_an_epoch(prepared: Job, driver: Driver, root: Path) -> Job:
    """A job that heard SIGTERM and stopped; a busy machine may need more than one try."""
    for number in range(3):
        job = prepared.copy(root / f"*[{number}]")  # DeepSpeed takes the path for a pattern
        run = driver.start(job)
        run.until(job.reached(1), "step 1")
        run.stop_all()  # a run of so few steps would end meanwhile
        os.kill(run.pid, signal.SIGTERM)
        run.go_on()
        assert run.wait() == 143, run.tail()
        if len(job.samples()) % 6:
            return job
    raise AssertionError("three signals in a row were heard at the end of an epoch")


def test_sigterm_in_the_middle_of_an_epoch(
    undisturbed: tuple[Job, Job], driver: Driver, tmp_path: Path
) -> None:
    prepared, ran = undisturbed
    job = stopped_within_an_epoch(prepared, driver, tmp_path)
    stopped = len(job.samples())
    assert 1 <= stopped < STEPS
    newest = job.saved()[-1]
    assert newest == f"1/step-{stopped}"
    manifest = (job.layout.checkpoints / newest / MANIFEST).read_text()
    assert '"reason": "signal"' in manifest or stopped % SAVE_EVERY == 0
    finish(driver, job)
    claim = job.claim(2)
    assert claim.resumes_from is not None
    assert claim.resumes_from.step == stopped
    assert claim.rejected == ()
    assert_same(job, ran, resumed_from=stopped)
    trained = [step for _, step, _ in job.samples()]
    assert trained == list(range(1, STEPS + 1)), "after a signal no step is trained twice"


def test_sigkill_in_the_middle_of_a_step(
    undisturbed: tuple[Job, Job], driver: Driver, tmp_path: Path
) -> None:
    killed_in_the_middle_of_a_step(*undisturbed, driver, tmp_path)


def test_pure_bf16_stays_bf16(driver: Driver, tmp_path: Path) -> None:
    """An adapter whose weights became fp32 at the resume would train on, to other weights."""
    prepared, ran = run_undisturbed(driver, tmp_path / "job", "lora", "ddp", "pureBf16")
    killed_in_the_middle_of_a_step(prepared, ran, driver, tmp_path / "killed")


def killed_in_the_middle_of_a_step(prepared: Job, ran: Job, driver: Driver, root: Path) -> None:
    root.mkdir(exist_ok=True)
    job = prepared.copy(root)
    held = hold(job.layout.checkpoint(1, STEPS) / "trainer_state.json")  # it cannot reach its end
    run = driver.start(job)
    run.until(job.reached(5), "step 5")
    run.kill()
    shutil.rmtree(held.parent)
    assert run.code == 137
    newest = job.saved()[-1]
    assert newest in ("1/step-4", "1/step-8")  # the second when this process was slow to kill
    finish(driver, job)
    claim = job.claim(2)
    assert claim.resumes_from is not None
    assert claim.resumes_from.path == f"checkpoints/{newest}"
    assert_same(job, ran, resumed_from=claim.resumes_from.step)


def test_sigkill_in_the_middle_of_a_save(
    undisturbed: tuple[Job, Job], driver: Driver, tmp_path: Path
) -> None:
    prepared, ran = undisturbed
    job = prepared.copy(tmp_path)
    # Rank 1 writes its random numbers last. A pipe that nobody reads holds it there.
    folder = job.layout.checkpoint(1, 8)
    folder.mkdir(parents=True)
    os.mkfifo(folder / "rng_state_1.pth")
    run = driver.start(job)
    run.until((folder / "rng_state_0.pth").exists, "the save of step 8")
    run.kill()
    assert run.code == 137
    assert job.saved() == ["1/step-4"]
    written = {path.name for path in folder.iterdir()}
    assert {"trainer_state.json", "scheduler.pt", "rng_state_0.pth"} <= written
    finish(driver, job)
    claim = job.claim(2)
    assert claim.resumes_from is not None
    assert claim.resumes_from.path == "checkpoints/1/step-4"
    assert [item.path for item in claim.rejected] == ["checkpoints/1/step-8"]
    assert not folder.exists(), "what can no longer be finished is deleted"
    assert_same(job, ran, resumed_from=4)
