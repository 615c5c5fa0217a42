"""What ranks of different processes exchange, and how long one waits for another."""

from __future__ import annotations

import errno
import multiprocessing
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_api.names import Layout
from finetune_trainer import arguments, train
from finetune_trainer.checkpoint import claim as claims
from finetune_trainer.checkpoint import gang, save
from finetune_trainer.checkpoint.restore import Start
from finetune_trainer.errors import StageError
from harness.stage_config import make_config

LIMIT = 2
"""Seconds after which a collective among accelerators is given up, in this test."""


def _gang(rank: int, store: Path) -> Any:
    import torch.distributed as dist

    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    arguments.COLLECTIVE_TIMEOUT = LIMIT
    objects, _ = train.gangs(SimpleNamespace(world_size=2))
    return objects


def _waits(rank: int, root: Path, said: Any) -> None:
    objects = _gang(rank, root / "store")

    def write() -> str:
        time.sleep(2 * LIMIT)
        return "written"

    try:
        said.put((rank, objects.led(write), objects.all(rank)))
    except Exception as error:
        said.put((rank, str(error), []))
        raise


def _fails(rank: int, root: Path, said: Any) -> None:
    config = make_config(root, "train")
    claim = claims.Claim(sequence=1, job_uid=config.job.uid, attempt=1, pod_uid="p", time="")
    saving = save.Checkpoints(config, Start(claim, None), _gang(rank, root / "store"))
    began = []

    def weights() -> None:
        if rank == 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    try:
        saving._written(saving.layout.checkpoint(1, 5), weights, lambda: began.append("optimizer"))
    except StageError as error:
        said.put((rank, int(error.exit_code), began))


def _both(root: Path, act: Callable[[int, Path, Any], None]) -> list[Any]:
    """What two ranks say, in processes of their own."""
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    ranks = [context.Process(target=act, args=(rank, root, said)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    try:
        return sorted(said.get(timeout=60) for _ in ranks)
    finally:
        for process in ranks:
            process.join(timeout=20)
            process.kill()


@pytest.mark.timeout(120)
def test_ranks_wait_for_the_one_that_writes(tmp_path: Path) -> None:
    """As long as the watchdog grants a save: six times an hour."""
    assert gang.PATIENCE == 21600
    assert _both(tmp_path, _waits) == [(0, "written", [0, 1]), (1, "written", [0, 1])]


@pytest.mark.timeout(120)
def test_where_the_weights_had_no_room_no_rank_goes_on_to_what_waits_for_all(
    tmp_path: Path,
) -> None:
    """DeepSpeed's ranks wait for each other when they write the optimizer: one would never come."""
    assert _both(tmp_path, _fails) == [(0, 14, []), (1, 14, [])]
    assert not Layout(tmp_path / "workspace").checkpoint(1, 5).exists()
