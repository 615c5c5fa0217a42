"""The ranks that train together, and the small objects that they exchange."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from finetune_trainer.errors import StageError

T = TypeVar("T")

PATIENCE = 21600
"""Seconds that ranks wait for one that writes or deletes on a slow volume.

As many as the watchdog, which ends whoever hangs, grants a save at least.
"""


@dataclass(frozen=True)
class Gang:
    """One rank's view of all ranks.

    ``group`` is a gloo process group over all ranks (objects are exchanged on the CPU, never
    through an accelerator); it may be None for a single rank.
    """

    rank: int = 0
    world_size: int = 1
    group: Any = None

    @property
    def leads(self) -> bool:
        """True on rank 0."""
        return self.rank == 0

    def all(self, value: T) -> list[T]:
        """Return every rank's value, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def led(self, act: Callable[[], T]) -> T:
        """Run ``act`` on rank 0 alone; return its result, or raise its ``StageError``, on all.

        Any other exception is raised on rank 0 alone: it ends the process, and with it the gang.
        """
        if self.world_size == 1:
            return act()
        import torch.distributed as dist

        box: list[Any] = [None, None]
        if self.leads:
            try:
                box[0] = act()
            except StageError as error:
                box[1] = (error.exit_code, error.problems)
        dist.broadcast_object_list(box, src=0, group=self.group)
        if box[1] is not None:
            raise StageError(box[1][0], *box[1][1])
        result: T = box[0]
        return result
