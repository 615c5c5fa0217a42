"""A damaged checkpoint is passed over, said, and never quietly replaced by a start at step 0."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.names import MANIFEST
from finetune_api.reports import TerminationReport
from finetune_trainer.checkpoint import verify
from harness.checkpoint_folders import contents, flip_byte
from harness.trainer_runs import STEPS, Driver, Job, Run, hold

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def killed(prepared: Job, driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that was killed after step 9, with checkpoints 4 and 8."""
    job = prepared.copy(tmp_path_factory.mktemp("killed"))
    held = hold(job.layout.checkpoint(1, STEPS) / "trainer_state.json")  # it cannot reach its end
    run = driver.start(job)
    run.until(job.reached(9), "step 9")
    run.kill()
    shutil.rmtree(held.parent)
    assert job.saved() == ["1/step-4", "1/step-8"]
    return job


def known(job: Job, step: int):
    folder = job.layout.checkpoint(1, step)
    return verify.reference(job.layout, folder, verify.read_manifest(folder))


def told(run: Run) -> TerminationReport:
    return TerminationReport.model_validate_json((run.folder / "termination.json").read_bytes())


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "rng_state_1.pth"])
def test_one_flipped_byte_costs_one_checkpoint(
    killed: Job, driver: Driver, tmp_path: Path, file: str
) -> None:
    job = killed.copy(tmp_path)
    newest = known(job, 8)
    path = job.layout.checkpoint(1, 8) / file
    flip_byte(path, path.stat().st_size // 2)
    run = driver.start(job, attempt=2, known=newest)
    assert run.wait() == 0, run.tail()
    claim = job.claim(2)
    assert claim.resumes_from is not None
    assert claim.resumes_from.path == "checkpoints/1/step-4"
    wanted = [
        {
            "path": "checkpoints/1/step-8",
            "step": 8,
            "reason": f"{file} has another content than its manifest says",
        }
    ]
    assert [item.to_json() for item in claim.rejected] == wanted
    for report in (told(run), job.end(2)):
        assert [item.to_json() for item in report.rejected] == wanted
        assert report.resumed_from is not None
        assert report.resumed_from.step == 4
    assert [step for c, step, _ in job.samples() if c == 2] == list(range(5, STEPS + 1))


def test_all_damaged_after_progress_ends_with_15_and_trains_nothing(
    killed: Job, driver: Driver, tmp_path: Path
) -> None:
    job = killed.copy(tmp_path)
    flip_byte(job.layout.checkpoint(1, 8) / "optimizer.pt", 100)
    manifest = job.layout.checkpoint(1, 4) / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "seed": 1}))
    before = contents(job.layout.root)
    run = driver.start(job, attempt=2)
    assert run.wait() == ExitCode.CHECKPOINT_UNUSABLE == 15, run.tail()
    problem = told(run).problems[0]
    assert problem.code == "checkpoint-unusable"
    assert problem.message == (
        "training had made progress, and no checkpoint can be used: "
        "step 8: optimizer.pt has another content than its manifest says; "
        "step 4: seed is 1, the job's is 42"
    )
    assert problem.fix
    after = contents(job.layout.root)
    assert {k: v for k, v in after.items() if not k.startswith(("reports/", "logs/"))} == {
        k: v for k, v in before.items() if not k.startswith(("reports/", "logs/"))
    }
    assert after["reports/metrics.jsonl"] == before["reports/metrics.jsonl"]
    assert sorted(path.name for path in job.layout.claims.iterdir()) == ["1.json"]


def test_another_workspace_than_the_one_that_was_known_ends_with_15(
    killed: Job, driver: Driver, tmp_path: Path
) -> None:
    job = killed.copy(tmp_path)
    newest = known(job, 8)
    shutil.rmtree(job.layout.checkpoints)
    shutil.rmtree(job.layout.claims)
    run = driver.start(job, attempt=2, known=newest)
    assert run.wait() == 15, run.tail()
    assert (
        told(run)
        .problems[0]
        .message.startswith("the checkpoint of step 8 (checkpoints/1/step-8) was verified before")
    )
    assert not job.layout.claims.exists()
