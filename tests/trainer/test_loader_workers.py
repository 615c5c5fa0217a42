"""Ranks whose loader reads ahead in processes (workers) of its own, as they do for accelerators."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from finetune_api.exit_codes import ExitCode
from finetune_trainer import errors
from finetune_trainer.data.collate import Collator
from finetune_trainer.errors import StageError
from finetune_trainer.loader import loader, workers
from harness.trainer_runs import STEPS, Driver, Job, Run, trainer_driver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WORKERS = 2
SOON = 2.0
"""Seconds within which workers have followed their rank; torch's own look after five."""


@pytest.fixture(scope="module")
def ahead() -> Iterator[Driver]:
    """Starts runs whose ranks have two workers each."""
    with trainer_driver(FINETUNE_LOADER_WORKERS=str(WORKERS)) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(prepared: Job, driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The job, trained to its end without workers."""
    job = prepared.copy(tmp_path_factory.mktemp("without-workers"))
    run = driver.start(job)
    assert run.wait() == 0, run.tail()
    return job


def children(pid: int) -> list[int]:
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(word) for word in words]


def started(run: Run, job: Job, claim: int = 1) -> tuple[list[int], list[int]]:
    """Wait for the first step of a claim; return the ranks, which stand still, and their workers."""
    run.until(job.reached(1, claim), "the first step")
    run.stop_all()  # a run of so few steps would end meanwhile
    ranks = run.ranks()
    found = [child for rank in ranks for child in children(rank)]
    assert (len(ranks), len(found)) == (2, 2 * WORKERS)
    return ranks, found


def left(pids: list[int]) -> list[int]:
    """Return those that still run, soon afterwards."""
    end = time.monotonic() + SOON
    while True:
        alive = [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.01)


def losses(job: Job) -> dict[int, float]:
    """The loss of every step; of a step that was trained twice the later."""
    lines = job.layout.metrics.read_text(encoding="utf-8").splitlines()
    told = [json.loads(line) for line in lines]
    return {line["step"]: line["loss"] for line in told if "loss" in line}


def assert_same(job: Job, undisturbed: Job, claim: int) -> None:
    """Bit for bit: batches, losses, weights, and the evaluation at the end."""
    assert sorted(losses(job)) == list(range(1, STEPS + 1))
    assert losses(job) == losses(undisturbed)
    expected = {step: digest for _, step, digest in undisturbed.samples()}
    assert {step: digest for _, step, digest in job.samples()} == expected
    assert job.final_weights() == undisturbed.final_weights()
    assert job.end(claim).evaluation == undisturbed.end(1).evaluation


def test_workers_change_nothing_and_end_with_their_ranks(
    prepared: Job, ahead: Driver, undisturbed: Job, tmp_path: Path
) -> None:
    job = prepared.copy(tmp_path)
    run = ahead.start(job)
    ranks, found = started(run, job)
    run.go_on()
    assert run.wait() == 0, run.tail()
    assert left([*ranks, *found]) == []
    assert_same(job, undisturbed, 1)


def assert_saved(run: Run, job: Job, processes: list[int]) -> None:
    """All ranks saved their last step within the grace period, and nothing is left."""
    began = time.monotonic()
    assert run.wait() == ExitCode.SIGNALLED == 143, run.tail()
    assert time.monotonic() - began < job.config.job.spec.checkpoint.grace_period_seconds
    assert left(processes) == []
    steps = [step for _, step, _ in job.samples()]
    assert job.saved()[-1] == f"1/step-{steps[-1]}"
    assert steps[-1] < STEPS


def test_sigterm_saves_and_the_next_attempt_goes_on_bit_by_bit(
    prepared: Job, ahead: Driver, undisturbed: Job, tmp_path: Path
) -> None:
    job = prepared.copy(tmp_path)
    run = ahead.start(job)
    ranks, found = started(run, job)
    os.kill(run.pid, signal.SIGTERM)
    run.go_on()
    assert_saved(run, job, [*ranks, *found])
    again = ahead.start(job, attempt=2)
    assert again.wait() == 0, again.tail()
    assert [step for _, step, _ in job.samples()] == list(range(1, STEPS + 1))
    assert_same(job, undisturbed, 2)


def test_a_signal_to_everybody_is_heard_by_ranks_alone(
    prepared: Job, ahead: Driver, tmp_path: Path
) -> None:
    """A node that goes down may signal every process of a pod, here the workers first."""
    job = prepared.copy(tmp_path)
    run = ahead.start(job)
    ranks, found = started(run, job)
    for pid in (*found, *ranks, run.pid):
        os.kill(pid, signal.SIGTERM)
    run.go_on()
    assert_saved(run, job, [*ranks, *found])


@pytest.mark.parametrize(
    ("victim", "message"),
    [
        ("rank", "a rank was killed (SIGKILL): by the node for its memory, or from outside"),
        (
            "worker",
            "a process that reads ahead for a rank was killed: by the node for its memory, "
            "or from outside",
        ),
    ],
    ids=["rank", "worker"],
)
def test_what_is_killed_is_told_and_nothing_is_left(
    prepared: Job, ahead: Driver, tmp_path: Path, victim: str, message: str
) -> None:
    job = prepared.copy(tmp_path)
    run = ahead.start(job)
    ranks, found = started(run, job)
    os.kill(ranks[1] if victim == "rank" else found[-1], signal.SIGKILL)
    run.go_on()
    assert run.wait() == ExitCode.KILLED == 137, run.tail()
    assert left([*ranks, *found]) == []
    report = job.end(1)
    assert (report.exit_code, report.message, report.problems) == (137, message, ())


class Rows:
    """Sequences of four tokens; one of them cannot be read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 3:
            raise ValueError("sequence 3\nis damaged")
        return {
            "input_ids": np.arange(4, dtype=np.uint32) + index,
            "spans": np.array([[1, 4]], dtype=np.int32),
            "lengths": np.array([4], dtype=np.int32),
            "sample_id": index,
        }


@pytest.fixture
def end_of_workers() -> Iterator[None]:
    """Whatever a test leaves is told to end, by the process that started it."""
    yield
    for worker in multiprocessing.active_children():
        worker.terminate()
        worker.join(SOON)
        assert worker.exitcode == 0


def small_loader(number: int, batches: list[list[int]]) -> DataLoader[Any]:
    arguments = SimpleNamespace(
        dataloader_num_workers=number,
        dataloader_pin_memory=False,
        dataloader_persistent_workers=number > 0,
        seed=1,
    )
    trainer = SimpleNamespace(args=arguments, data_collator=Collator(0, packing=True))
    return loader(trainer, Rows(), batches)


@pytest.mark.usefixtures("end_of_workers")
@pytest.mark.parametrize("number", [0, 1])
def test_an_error_in_a_worker_is_told_as_if_the_rank_had_met_it(number: int) -> None:
    with pytest.raises(ValueError, match="damaged") as caught:
        list(small_loader(number, [[0], [3]]))
    ending = errors.ending_of(caught.value)
    assert (ending.exit_code, ending.message) == (1, "ValueError: sequence 3")
    assert [problem.message for problem in ending.problems] == ["ValueError: sequence 3"]


@pytest.mark.usefixtures("end_of_workers")
def test_workers_take_no_shared_memory() -> None:
    """A batch that /dev/shm has no room for would be lost in the worker, and waited for forever."""
    batches = list(small_loader(1, [[0, 1], [2]]))
    assert [batch["input_ids"].tolist() for batch in batches] == [
        [[0, 1, 2, 3], [1, 2, 3, 4]],
        [[2, 3, 4, 5]],
    ]
    assert [tensor.is_shared() for batch in batches for tensor in batch.values()] == [False] * 8


@pytest.mark.parametrize(
    ("device", "environment", "number"),
    [
        ("cuda", {}, 2),
        ("cpu", {}, 0),
        ("cuda", {"FINETUNE_LOADER_WORKERS": ""}, 2),
        ("cuda", {"FINETUNE_LOADER_WORKERS": "0"}, 0),
        ("cpu", {"FINETUNE_LOADER_WORKERS": "3"}, 3),
    ],
)
def test_an_accelerator_has_two_workers_unless_told(
    device: str, environment: dict[str, str], number: int
) -> None:
    assert workers(device, environment) == number


@pytest.mark.parametrize("asked", ["two", "-1", "65", "1.5"])
def test_what_is_no_number_of_workers_is_refused(asked: str) -> None:
    with pytest.raises(StageError) as refused:
        workers("cuda", {"FINETUNE_LOADER_WORKERS": asked})
    assert refused.value.exit_code == ExitCode.INVALID_CONFIG == 10
    (problem,) = refused.value.problems
    assert problem.message == f"FINETUNE_LOADER_WORKERS is {asked!r}, not a number from 0 to 64"
    assert problem.fix
