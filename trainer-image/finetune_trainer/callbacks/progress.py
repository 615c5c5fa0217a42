"""What rank 0 tells while it trains: ``progress.json``, metric lines, and one log line a log step."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from finetune_api.checkpoint import CheckpointRef
from finetune_api.names import Layout
from finetune_api.reports import Progress
from finetune_trainer.callbacks.goodput import Clock
from finetune_trainer.callbacks.meter import Meter
from finetune_trainer.checkpoint import claim as claims
from finetune_trainer.checkpoint.gang import Gang
from finetune_trainer.order import step_digest

Phase = Literal["loading", "training", "evaluating", "saving", "done"]


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Holds the newest ``Progress``; all ranks hold one, rank 0 writes it."""

    def __init__(
        self,
        progress: Progress,
        layout: Layout,
        gang: Gang,
        clock: Clock,
        meter: Meter,
        *,
        newest: Callable[[], CheckpointRef | None],
        trace_samples: bool = False,
    ) -> None:
        """Start from what is known before the first step."""
        self.progress = progress
        self._layout, self._gang, self._clock, self._meter = layout, gang, clock, meter
        self._newest, self._trace = newest, trace_samples
        self._tokens_since = 0.0
        self._failing = False

    @property
    def last_loss(self) -> float | None:
        """The loss of the last logged step; None where there is none, or none that is a number."""
        loss = self.progress.loss
        return loss if loss is not None and math.isfinite(loss) else None

    @contextmanager
    def phase(self, phase: Literal["training", "evaluating", "saving"]) -> Iterator[None]:
        """Be in a phase: what the time goes to, and what progress says."""
        before, bucket = self.progress.phase, self._clock.switch(phase)
        self.update(phase=phase)
        try:
            yield
        finally:
            self._clock.switch(bucket)
            self.update(phase=before)

    def update(self, **changes: Any) -> None:
        """Change fields of the progress and write it as a whole; rank 0 alone writes.

        Once a newer claim exists, the file is its own; where that cannot be known, nothing is written.
        """
        self.progress = self.progress.model_copy(
            update={
                **changes,
                "goodput": self._clock.goodput(),
                "checkpoint": self._newest(),
                "peak_memory_bytes": peak_memory(),
                "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
        data = json.dumps(self.progress.to_json()).encode()

        def write() -> None:
            if not claims.newer(self._layout, self.progress.claim):
                replace(self._layout.progress, data)

        self._lead(write)

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Tell an evaluation."""
        self.update(evaluation=metrics, step=step)
        self._line({"step": step, "evaluation": metrics})
        self._log({"event": "evaluation", "step": step, **metrics})

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The first step begins."""
        self._clock.switch("training")
        self._meter.read()
        self._tokens_since = self._spent()
        self.update(phase="training", step=state.global_step, epoch=float(state.epoch or 0.0))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write which samples the step consumed, where a test asked for it. Collective then."""
        if self._trace:
            parts = self._gang.all(self._meter.sample_ids)
            ids = [sample for part in parts for sample in part]
            self._line({"step": state.global_step, "samples": step_digest(ids)})

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Tell a logged step. Collective: the tokens of all ranks are summed."""
        if not logs or "loss" not in logs:
            return
        spent = self._spent()
        tokens = self._summed(self._meter.read())
        speed = tokens / max(spent - self._tokens_since, 1e-9)
        self._tokens_since = spent
        step_seconds = self._clock.step_seconds
        left = max(0, state.max_steps - state.global_step)
        norm = logs.get("grad_norm")
        values = {
            "loss": float(logs["loss"]),
            "learning_rate": float(logs.get("learning_rate", 0.0)),
            # In fp16 an infinite one is the loss scaler's business; JSON has no infinity.
            "gradient_norm": None if norm is None or not math.isfinite(norm) else float(norm),
            "tokens_per_second": round(speed, 3),
        }
        self.update(
            step=state.global_step,
            epoch=float(state.epoch or 0.0),
            eta_seconds=None if step_seconds is None else round(step_seconds * left, 3),
            **values,
        )
        camel = {_camel(name): value for name, value in values.items() if value is not None}
        self._line({"step": state.global_step, **camel})
        saved, start = self.progress.checkpoint, self.progress.resumed_from
        self._log(
            {
                "event": "progress",
                "step": state.global_step,
                "totalSteps": state.max_steps,
                **camel,
                "etaSeconds": self.progress.eta_seconds,
                # The operator reads this line where it cannot reach the process.
                **({} if saved is None else {"checkpoint": saved.to_json()}),
                **({} if start is None else {"resumedFrom": start.to_json()}),
            }
        )

    def _spent(self) -> float:
        """Seconds of training so far, without saving and evaluating."""
        goodput = self._clock.goodput()
        return goodput.productive + goodput.lost

    def _summed(self, tokens: int) -> int:
        if self._gang.world_size == 1:
            return tokens
        import torch

        box = torch.tensor([tokens], dtype=torch.int64)
        torch.distributed.all_reduce(box, group=self._gang.group)
        return int(box.numpy()[0])

    def _line(self, values: dict[str, Any]) -> None:
        """Append one line to the metrics; a line cut short by a crash is no JSON and is skipped."""
        line = {"claim": self.progress.claim, **values}
        self._lead(lambda: append_line(self._layout.metrics, line))

    def _log(self, values: dict[str, Any]) -> None:
        if self._gang.leads:
            identity = {"job": self.progress.job_uid, "attempt": self.progress.attempt}
            line = json.dumps({**values, **identity, "claim": self.progress.claim})
            with suppress(OSError):  # the log may be a file on a full disk
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()

    def _lead(self, act: Callable[[], None]) -> None:
        """Write a file on rank 0. That it cannot be is said once and is no reason to stop."""
        if not self._gang.leads:
            return
        try:
            act()
        except OSError as error:
            if not self._failing:
                with suppress(OSError):
                    sys.stderr.write(f"progress cannot be told, training goes on: {error}\n")
            self._failing = True
        else:
            self._failing = False


def replace(path: Path, data: bytes) -> None:
    """Replace a file as a whole, without waiting for the disk: it is told again in a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.rename(path)


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Append one JSON line in one write; begin a new line after one that was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        data = json.dumps(values).encode() + b"\n"
        if stream.tell() and not _ends_with_newline(path):
            data = b"\n" + data
        stream.write(data)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read(1) == b"\n"


def peak_memory() -> int:
    """Return the largest amount of memory that this rank held: of the accelerator, else resident."""
    import resource

    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)
