"""A loss or a gradient that is no number ends the run at its step, before anything is saved.

On the CPU both are looked at where they lie, before the optimizer steps. On an accelerator they are
copied to the host without waiting and looked at when the copy has arrived: mostly one step later,
at the latest when the loss is logged or a checkpoint is due.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_trainer.errors import StageError

OVERFLOWS = 20
"""Steps in a row without finite gradients that the loss scaler of fp16 is granted: from the scale
with which it begins, 2^16, it is at 1 after 16 of them. None of those steps has moved a weight."""


@dataclass
class _Flight:
    step: int
    host: torch.Tensor
    arrived: Any


class Finite:
    """Watches the loss and the gradient norm of every optimizer step."""

    def __init__(self, *, gradients: bool) -> None:
        """``gradients`` is False for fp16: there the loss scaler meets infinite ones and goes on."""
        self._gradients = gradients
        self._overflows = 0
        self._flights: deque[_Flight] = deque()

    def look(self, step: int, loss: torch.Tensor, norm: Any) -> None:
        """Take the loss accumulated since the last log, and the gradient norm, of one step.

        Raises:
            StageError: one of them, or one of an earlier step, is no finite number (13); in fp16
                the norms of ``OVERFLOWS`` steps in a row.
        """
        norm = 0.0 if norm is None else norm  # DeepSpeed has none before a step that counts
        if loss.device.type != "cuda":
            self._check(step, _number(loss), _number(norm))
            return
        self._land(wait=False)
        pair = torch.stack(
            (loss.detach().float(), torch.as_tensor(norm, device=loss.device).float())
        )
        host = torch.empty(2, dtype=torch.float32, pin_memory=True)
        host.copy_(pair, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        self._flights.append(_Flight(step, host, arrived))

    def settle(self) -> None:
        """Wait for what is on its way; raises as ``look`` does."""
        self._land(wait=True)

    def end(self, step: int) -> None:
        """Take the last step of a run; raises as ``look`` does, and where no step moved a weight.

        Of an attempt that went on from a checkpoint nobody knows: earlier steps may have counted.
        """
        self.settle()
        if 0 < step == self._overflows:
            raise _untrained(f"any of {step} steps")

    def _land(self, *, wait: bool) -> None:
        while self._flights and (wait or self._flights[0].arrived.query()):
            flight = self._flights.popleft()
            flight.arrived.synchronize()
            loss, norm = flight.host.numpy()
            self._check(flight.step, float(loss), float(norm))

    def _check(self, step: int, loss: float, norm: float) -> None:
        if self._gradients or not math.isfinite(loss):
            _require(step, loss, norm)
            return
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        if self._overflows >= OVERFLOWS:
            raise _untrained(f"{OVERFLOWS} steps in a row, the last of them step {step}")


def _number(value: Any) -> float:
    """Read a value on the host; no tensor operation, so that it never counts as a wait."""
    if isinstance(value, torch.Tensor):
        return float(value.detach().float().numpy())
    return float(value)


def _untrained(steps: str) -> StageError:
    return StageError(
        ExitCode.NON_FINITE_LOSS,
        Problem(
            code="non-finite-gradients",
            message=f"gradients in fp16 were not finite in {steps}: no weight has moved in them",
            fix="set training.precision to bf16 where the accelerator has it, else to fp32, or "
            "lower training.learningRate",
            field="spec.training.precision",
        ),
    )


def _require(step: int, loss: float, norm: float) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
    raise StageError(
        ExitCode.NON_FINITE_LOSS,
        Problem(
            code="non-finite-loss",
            message=f"{what} at step {step}; nothing of it was saved",
            fix="lower training.learningRate, set training.maxGradNorm: 1.0, lengthen the warm-up, "
            "or use precision bf16 or fp32; then look at the rows of that step",
            field="spec.training.learningRate",
        ),
    )
