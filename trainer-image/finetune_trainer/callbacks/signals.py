"""Stopping and saving together: all ranks learn of a signal at the same micro-batch.

A rank that hears SIGTERM says so in an asynchronous maximum over all ranks, started at the end of a
micro-batch and read at the end of the next, so that nobody waits for it. What is accumulated of an
unfinished step is thrown away; all ranks save the step that was finished last.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
from transformers import TrainerCallback

from finetune_trainer.callbacks.cadence import Cadence
from finetune_trainer.checkpoint.gang import Gang
from finetune_trainer.checkpoint.save import Checkpoints
from finetune_trainer.listener import Listener

NOTHING, SAVE, STOP = 0, 1, 2
Phase = Literal["training", "evaluating", "saving"]
Enter = Callable[[Phase], AbstractContextManager[None]]


class Agreement:
    """The largest value of all ranks, one poll later."""

    def __init__(self, gang: Gang) -> None:
        """Use the gang's gloo group, and nothing where there is one rank."""
        self._gang = gang
        self._work: Any = None
        if gang.world_size > 1:
            import torch

            self._value = torch.zeros(1, dtype=torch.int32)
            self._seen: np.ndarray[Any, np.dtype[np.int32]] = self._value.numpy()

    def poll(self, value: int) -> int:
        """Give this rank's value; return the largest that any rank gave in the poll before.

        All ranks must poll equally often. One rank alone gets its own value back at once.
        """
        if self._gang.world_size == 1:
            return value
        agreed = self.settle()
        import torch.distributed as dist

        self._seen[0] = value
        self._work = dist.all_reduce(
            self._value, op=dist.ReduceOp.MAX, group=self._gang.group, async_op=True
        )
        return agreed

    def settle(self) -> int:
        """Wait for the poll before and return what was agreed; 0 when there was none."""
        if self._work is None:
            return NOTHING
        self._work.wait()
        self._work = None
        return int(self._seen[0])


class Signals(TrainerCallback):  # type: ignore[misc]
    """Decides at every micro-batch whether to go on, to save, or to save and stop."""

    def __init__(
        self,
        listener: Listener,
        agreement: Agreement,
        cadence: Cadence,
        checkpoints: Checkpoints,
        *,
        every_steps: int | None,
        enter: Enter,
        before_saving: Callable[[], None],
        evaluation_of: Callable[[int], dict[str, float]],
    ) -> None:
        """Hold what is asked and what is told; ``enter`` marks the phases of the run."""
        self._listener, self._agreement = listener, agreement
        self._cadence, self.checkpoints = cadence, checkpoints
        self._every_steps = every_steps
        self._enter, self._before_saving = enter, before_saving
        self._evaluation_of = evaluation_of
        self._save_wanted = False
        self.stopping = False
        """All ranks agreed to stop."""

    def poll(self) -> bool:
        """Take part in one agreement; return whether all ranks stop now."""
        agreed = self._agreement.poll(self._wish())
        if agreed == SAVE:
            self._save_wanted = True
        self.stopping = self.stopping or agreed == STOP
        return self.stopping

    def _wish(self) -> int:
        if self._listener.heard:
            return STOP
        clock_decides = self._every_steps is None and self.checkpoints.gang.leads
        return SAVE if clock_decides and self._cadence.due() else NOTHING

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The first step begins: work that could be lost is counted from here."""
        self._cadence.begin()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Inside an accumulation: stop if all agree; the partial accumulation is thrown away."""
        if self.poll():
            self.stop(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After an optimizer step: stop, save, or go on."""
        self.checkpoints.mark()
        self._cadence.step_ended(state.global_step)
        if self.poll():
            self.stop(control)
        elif state.global_step < state.max_steps:
            fixed = self._every_steps is not None and self._cadence.due()
            if fixed or self._save_wanted:
                control.should_save = True

    def stop(self, control: Any) -> None:
        """Let the loop save the last finished step and end."""
        control.should_evaluate = False
        control.should_save = True
        control.should_training_stop = True

    def save(self, trainer: Any, reason: Literal["cadence", "signal", "end"] | None = None) -> None:
        """Save the last finished step; nothing where no step is finished. Collective."""
        self._save_wanted = False
        step = int(trainer.state.global_step)
        if step == 0:
            return
        self._before_saving()
        with self._enter("saving"):
            self.checkpoints.save(
                trainer,
                reason or ("signal" if self.stopping else "cadence"),
                self._evaluation_of(step),
            )
        self._cadence.saved(step, self.checkpoints.seconds)
