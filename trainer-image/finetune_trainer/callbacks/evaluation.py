"""Evaluation on the validation data: token losses over trained tokens, over all ranks.

Evaluated before the first step, every ``evaluation_every_steps``, and at the end. The best is kept
as a snapshot; early stopping counts evaluations without an improvement. A signal cuts an evaluation
short: what was summed so far is thrown away, the step is saved without it, and a resumed run
evaluates that step before it trains on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from finetune_api.exit_codes import ExitCode
from finetune_api.job.lifecycle import EarlyStopping
from finetune_api.problem import Problem
from finetune_trainer.checkpoint import rng
from finetune_trainer.checkpoint.gang import Gang
from finetune_trainer.errors import StageError
from finetune_trainer.losses import IGNORED, token_losses, trained_tokens
from finetune_trainer.masks import drop_needless_mask

STATE_KEY = "finetune-evaluation"
"""In ``TrainerState.stateful_callbacks``, which every checkpoint carries."""


class Rows(Protocol):
    """Prepared validation data."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass
class Standing:
    """What the evaluations so far came to; saved with every checkpoint."""

    before: dict[str, float] = field(default_factory=dict)
    """Of the model before training."""
    latest: dict[str, float] = field(default_factory=dict)
    step: int = -1
    """Of the latest evaluation."""
    best_loss: float | None = None
    best_step: int = -1
    stale: int = 0
    """Evaluations since the last improvement by more than ``minDelta``."""
    reference: float | None = None
    """The loss that an improvement is measured against."""

    def note(self, step: int, metrics: dict[str, float], min_delta: float) -> bool:
        """Take an evaluation; return whether it is the best of a trained model so far."""
        loss = metrics["loss"]
        self.latest, self.step = dict(metrics), step
        if step == 0:
            self.before = dict(metrics)
        if self.reference is None or loss < self.reference - min_delta:
            self.reference, self.stale = loss, 0
        elif step > 0:
            self.stale += 1
        if step == 0 or (self.best_loss is not None and loss >= self.best_loss):
            return False
        self.best_loss, self.best_step = loss, step
        return True


class Evaluation(TrainerCallback):  # type: ignore[misc]
    """Decides when to evaluate, and does it."""

    def __init__(
        self,
        rows: Rows | None,
        collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
        gang: Gang,
        *,
        every_steps: int | None,
        batch_size: int,
        max_rows: int | None,
        early_stopping: EarlyStopping | None,
        stop_now: Callable[[], bool],
        beat: Callable[[], None],
        enter: Callable[[Any], AbstractContextManager[None]],
        save_best: Callable[[Any, dict[str, float]], object],
        report: Callable[[int, dict[str, float]], None],
    ) -> None:
        """Without rows nothing is ever evaluated; ``stop_now`` is asked after every batch."""
        self._rows, self._collate, self._gang = rows, collate, gang
        self._every_steps = every_steps if rows is not None else None
        self._batch_size = batch_size
        self._count = min(len(rows), max_rows or len(rows)) if rows is not None else 0
        self._early_stopping = early_stopping
        self._stop_now, self._beat, self._enter = stop_now, beat, enter
        self._save_best, self._report = save_best, report
        self.standing = Standing()
        self._trainer: Any = None

    @property
    def exists(self) -> bool:
        """True when there is validation data."""
        return self._count > 0

    def of(self, step: int) -> dict[str, float]:
        """Return the metrics of a step; empty when it was not evaluated."""
        return self.standing.latest if self.standing.step == step else {}

    def resume(self, checkpoint: Path | None) -> None:
        """Take up what the evaluations before a checkpoint came to."""
        if checkpoint is not None:
            state = json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
            self.standing = Standing(**state["stateful_callbacks"].get(STATE_KEY, {}))

    @property
    def exhausted(self) -> bool:
        """True when there were too many evaluations without an improvement."""
        patience = self._early_stopping
        return patience is not None and self.standing.stale >= patience.patience

    def attach(self, trainer: Any) -> None:
        """Hold the trainer, for the evaluation before the first step."""
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate what is due and was never finished; then nothing may be left to train."""
        if self.missing(state.global_step) and state.global_step < state.max_steps:
            self._trainer.evaluate()
        if self.exhausted or state.global_step >= state.max_steps:
            control.should_training_stop = True

    def lacks(self, step: int) -> bool:
        """Tell whether there is something to evaluate a step with, and that was not done yet."""
        return self.exists and self.standing.step != step

    def missing(self, step: int) -> bool:
        """Tell whether a step that is due for an evaluation has none yet."""
        due = step == 0 or (self._every_steps is not None and step % self._every_steps == 0)
        return due and self.lacks(step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for an evaluation when one is due; the last step's is made at the end."""
        if self.missing(state.global_step) and state.global_step < state.max_steps:
            control.should_evaluate = True

    def run(self, trainer: Any) -> dict[str, float]:
        """Evaluate now, on all ranks; empty when it was cut short or there is no data.

        Raises:
            StageError: the loss is no finite number (13).
        """
        if not self.exists:
            return {}
        step = int(trainer.state.global_step)
        with self._enter("evaluating"), rng.preserved():
            summed = self._sums(trainer)
        if summed is None:
            return {}
        loss = summed[0] / max(summed[1], 1.0)
        _check_finite(loss, step)
        metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": summed[1]}
        patience = self._early_stopping
        best = self.standing.note(step, metrics, patience.min_delta if patience else 0.0)
        trainer.state.stateful_callbacks[STATE_KEY] = asdict(self.standing)
        self._report(step, metrics)
        if best:
            with self._enter("saving"):
                self._save_best(trainer, metrics)
        if self.exhausted:
            trainer.control.should_training_stop = True
        return metrics

    def _sums(self, trainer: Any) -> tuple[float, float] | None:
        """Return token losses and trained tokens over all ranks; None when cut short."""
        # The wrapper of DDP is left out: it would exchange buffers at every forward pass.
        model = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
        device = trainer.args.device
        was_training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        cut = False
        try:
            with torch.no_grad():
                for batch in self._batches():
                    labels = batch.pop("labels").to(device)
                    outputs = model(**{name: value.to(device) for name, value in batch.items()})
                    sums[0] += token_losses(outputs.logits, labels)
                    sums[1] += trained_tokens(labels)
                    self._beat()
                    cut = self._stop_now()
                    if cut:
                        break
        finally:
            model.train(was_training)
        if cut:
            return None
        host = sums.cpu()
        if self._gang.world_size > 1:
            torch.distributed.all_reduce(host, group=self._gang.group)
        loss, tokens = host.tolist()
        return float(loss), float(tokens)

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield this rank's batches; every rank has equally many, for what is collective in them.

        Where the rows run out, a row is shown again without labels: it counts for nothing.
        """
        assert self._rows is not None
        rank, world = self._gang.rank, self._gang.world_size
        own = list(range(rank, self._count, world))
        for number in range(math.ceil(math.ceil(self._count / world) / self._batch_size)):
            part = own[number * self._batch_size : (number + 1) * self._batch_size]
            batch = self._collate([self._rows[index] for index in part or [0]])
            batch.pop("sample_ids", None)
            drop_needless_mask(batch)
            if not part:
                batch["labels"] = torch.full_like(batch["labels"], IGNORED)
            yield batch


def _check_finite(loss: float, step: int) -> None:
    if math.isfinite(loss):
        return
    raise StageError(
        ExitCode.NON_FINITE_LOSS,
        Problem(
            code="non-finite-loss",
            message=f"the evaluation loss is {loss} at step {step}; nothing of it was saved",
            fix="lower training.learningRate or use precision bf16 or fp32; at step 0 the base "
            "model itself cannot compute these rows",
            field="spec.training.learningRate",
        ),
    )
