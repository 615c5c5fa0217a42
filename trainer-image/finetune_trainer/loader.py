"""The loader of training batches, and the processes (workers) in which it reads ahead."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.utils.data import DataLoader

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_trainer.errors import StageError
from finetune_trainer.rank import die_with

WORKERS = "FINETUNE_LOADER_WORKERS"
"""Overrides the number of workers of a rank. Whoever starts the trainer may set it; a job cannot,
nor can a profile: which batches come, and in which order, is the same for every number."""
MOST = 64


def workers(device: str, environ: Mapping[str, str]) -> int:
    """Return the workers of one rank: two where an accelerator would wait for the host, else none.

    On a CPU they would take processors from the rank itself.

    Raises:
        StageError: the environment asks for something that is no number from 0 to ``MOST`` (10).
    """
    asked = environ.get(WORKERS)
    if not asked:
        return 0 if device == "cpu" else 2
    if asked.isdecimal() and int(asked) <= MOST:
        return int(asked)
    raise StageError(
        ExitCode.INVALID_CONFIG,
        Problem(
            code="launch-environment",
            message=f"{WORKERS} is {asked[:40]!r}, not a number from 0 to {MOST}",
            fix=f"unset {WORKERS} where the trainer is started, or set it to such a number",
        ),
    )


class Follow:
    """What a worker does first: from then on it ends with its rank, and not before."""

    def __init__(self) -> None:
        """Remember the process that makes it, which is the rank."""
        self._rank = os.getpid()

    def __call__(self, worker: int) -> None:
        """Begin, in the worker.

        A rank that is killed cannot end its workers, and as long as one of them lives the other
        ranks' connections to it stay open. A signal to every process of the pod, as an ending node
        sends it, is for the rank alone: it needs its workers until all ranks have agreed to stop.
        """
        heard = (signal.SIGTERM, signal.SIGINT)
        signal.pthread_sigmask(signal.SIG_BLOCK, heard)  # of the threads to come too

        def wait() -> None:
            while signal.sigwaitinfo(heard).si_pid != self._rank:
                pass
            os._exit(0)

        threading.Thread(target=wait, name="rank-signals", daemon=True).start()
        die_with(self._rank)
        ForkingPickler.register(torch.Tensor, by_value)


def by_value(tensor: torch.Tensor) -> tuple[Callable[..., torch.Tensor], tuple[Any]]:
    """Return how a worker sends a tensor: as its bytes, through the pipe.

    torch would put it into /dev/shm and send a descriptor. A batch of token ids is too small to gain
    by that, and where a container's /dev/shm is full, such a batch is dropped and waited for forever.
    """
    return torch.from_numpy, (tensor.numpy(),)


def loader(trainer: Any, dataset: Any, batches: Any) -> DataLoader[Any]:
    """Return a plain DataLoader over a rank's own batches.

    It is not prepared by accelerate: the batches are divided over the ranks already. Its generator
    keeps the loader from drawing on the global random numbers, which belong to the model. Workers
    are forked from the rank itself: started as ranks are, each would import torch again, and be the
    child of a process that outlives a killed rank.
    """
    args = trainer.args
    ahead = args.dataloader_num_workers > 0
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=trainer.data_collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        generator=torch.Generator().manual_seed(args.seed),
        worker_init_fn=Follow() if ahead else None,
        multiprocessing_context="fork" if ahead else None,
    )
