"""DeepSpeed's own files in a checkpoint: no rank leaves the writing of them before the others.

``save_checkpoint`` ends with a barrier of all ranks. One whose volume is full would leave before it,
and the others would wait until the collective times out, to find that they lost it. So what a write
raises is kept, the rank goes on to the barrier without writing more, and raises it then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LATEST = "latest"
"""The file in which DeepSpeed looks for the name of the folder of its shards."""


def write(engine: Any, folder: Path, tag: str, *, adapter_alone: bool) -> None:
    """Write weights' and optimizer's shards of this rank below ``folder/tag``. Collective.

    Raises:
        Exception: what a write of this rank raised, once all ranks are done.
    """
    with _kept_until_the_end(engine) as attempt:
        attempt((folder / tag).mkdir, parents=True, exist_ok=True)
        engine.save_checkpoint(
            str(folder), tag=tag, save_latest=False, exclude_frozen_parameters=adapter_alone
        )
        if engine.global_rank == 0:
            attempt((folder / LATEST).write_text, tag, encoding="utf-8")


@contextmanager
def _kept_until_the_end(engine: Any) -> Iterator[Callable[..., None]]:
    """Give a way to call what writes, which DeepSpeed takes too; raises its first error at the end."""
    failed: list[Exception] = []
    files = engine.checkpoint_engine
    save = files.save

    def attempt(act: Callable[..., object], *values: Any, **named: Any) -> None:
        if failed:
            return
        try:
            act(*values, **named)
        except Exception as error:
            failed.append(error)

    files.save = lambda *values, **named: attempt(save, *values, **named)
    engine._copy_recovery_script = lambda _: None  # code that nobody needs in a checkpoint
    try:
        yield attempt
    finally:
        del files.save, engine._copy_recovery_script
    if failed:
        raise failed[0]
