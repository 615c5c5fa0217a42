"""The trainer: transformers' own, with seven methods that each call into a module of ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from finetune_trainer.callbacks.evaluation import Evaluation
from finetune_trainer.callbacks.finite import Finite
from finetune_trainer.callbacks.meter import Meter
from finetune_trainer.callbacks.signals import Signals
from finetune_trainer.checkpoint import rng, trained
from finetune_trainer.checkpoint.gang import Gang
from finetune_trainer.checkpoint.save import is_adapter
from finetune_trainer.loader import loader
from finetune_trainer.order import GlobalBatches


@dataclass(frozen=True)
class Parts:
    """What the overridden methods call."""

    gang: Gang
    batches: GlobalBatches
    meter: Meter
    finite: Finite
    signals: Signals
    evaluation: Evaluation


def of(base: type[Any]) -> type[Any]:
    """Return a subclass of a transformers-like trainer that saves, samples and evaluates as we do.

    Its constructor takes ``parts`` beside the arguments of ``base``.
    """

    class Trainer(base):  # type: ignore[misc]
        """Transformers' loop with our data order, evaluation and checkpoints."""

        def __init__(self, *args: Any, parts: Parts, **kwargs: Any) -> None:
            self.parts = parts
            super().__init__(*args, **kwargs)

        def get_train_dataloader(self) -> DataLoader[Any]:
            return loader(self, self.train_dataset, self.parts.batches)

        def get_batch_samples(
            self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
        ) -> tuple[list[Any], Any]:
            if self.control.should_training_stop:  # before the loop looks at it: in its first step
                return [], None
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
            self.parts.meter.take(batches)
            return batches, items

        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            norm = super()._get_grad_norm(model, grad_norm=grad_norm)
            self.parts.finite.look(self.state.global_step + 1, self._tr_loss, norm)
            return norm

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            metrics = self.parts.evaluation.run(self)
            handler = self.callback_handler
            handler.on_evaluate(self.args, self.state, self.control, metrics)
            if self.parts.signals.stopping:  # cut short; where a step is one micro-batch,
                self.parts.signals.stop(self.control)  # one more would be trained
            return metrics

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            self.parts.signals.save(self)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if is_adapter(self):  # full fine-tuning has the weights already: see checkpoint.trained
                with trained.whole(Path(resume_from_checkpoint)):
                    super()._load_from_checkpoint(resume_from_checkpoint, model)

        def _load_rng_state(self, checkpoint: str | None) -> None:
            if checkpoint is not None:
                rng.load(Path(checkpoint), self.parts.gang.rank)

    return Trainer
