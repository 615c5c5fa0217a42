from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api.names import Layout
from finetune_trainer.callbacks.evaluation import Evaluation, Standing
from finetune_trainer.export.select import select
from finetune_trainer.listener import Listener
from harness.prepared_job import prepared_job, progress, train_here, values, with_attempt

FAST = {
    "method": {"lora": None, "full": {}},
    "training": {"learningRate": 1e-2, "lrScheduler": "constant", "warmupSteps": 0},
}


def note(standing: Standing, step: int, loss: float, min_delta: float = 0.0) -> bool:
    return standing.note(step, {"loss": loss}, min_delta)


def test_the_best_is_that_of_a_trained_model() -> None:
    standing = Standing()
    assert not note(standing, 0, 1.0), "the model before training is no candidate"
    assert note(standing, 10, 2.0)
    assert not note(standing, 20, 2.0)
    assert note(standing, 30, 1.5)
    assert (standing.best_step, standing.best_loss) == (30, 1.5)
    assert standing.before == {"loss": 1.0}
    assert standing.latest == {"loss": 1.5}


def test_patience_counts_evaluations_without_an_improvement() -> None:
    standing = Standing()
    counts = []
    for step, loss in enumerate([2.0, 1.9, 1.85, 1.7, 1.7, 1.69]):
        note(standing, step * 10, loss, min_delta=0.09)
        counts.append(standing.stale)
    assert counts == [0, 0, 1, 0, 1, 2]


def test_no_improvement_stops_early_with_a_final_checkpoint(tmp_path: Path) -> None:
    """Random tokens cannot be learnt: the loss on held-out ones only grows."""
    spec = {**FAST, "evaluation": {"earlyStopping": {"patience": 2}}}
    config = prepared_job(tmp_path, spec, steps=40, evaluate_every=2)
    outcome = train_here(config, tmp_path / "scratch")
    assert outcome.code == 0
    evaluations = values(config, "evaluation")
    last = max(evaluations)
    assert last < 40
    assert evaluations[last]["loss"] >= min(entry["loss"] for entry in evaluations.values())
    assert progress(config).step == last
    assert (Layout(Path(config.mounts.workspace)).checkpoint(1, last) / "manifest.json").is_file()
    said = f"stopped early at step {last} of 40: no improvement in 2 evaluations"
    assert outcome.message == said
    again = train_here(with_attempt(config, 2, 1, 2), tmp_path / "again")
    assert (again.code, again.message, again.facts["step"]) == (0, said, last)
    assert again.facts["evaluation"] == evaluations[last]
    assert max(values(config, "samples")) == last, "nothing was trained any more"


def test_what_was_cut_short_ends_the_resumed_run_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation of step 4 is the first without an improvement, and it is cut short."""
    spec = {"evaluation": {"earlyStopping": {"patience": 1}}}
    config = prepared_job(tmp_path, spec, micro_batch=8, steps=8, evaluate_every=2)
    losses, listener = {0: 6.0, 2: 5.0}, Listener()

    def sums(_: Evaluation, trainer: Any) -> tuple[float, float] | None:
        loss = losses.get(trainer.state.global_step)
        listener.heard = loss is None
        return None if trainer.parts.signals.poll() or loss is None else (loss, 1.0)

    monkeypatch.setattr(Evaluation, "_sums", sums)
    outcome = train_here(config, tmp_path / "scratch", listener=listener)
    assert (outcome.code, outcome.facts["step"]) == (143, 4)

    losses[4] = 5.5
    for number in (2, 3):
        again = train_here(with_attempt(config, number, 1, 8), tmp_path / str(number))
        said = "stopped early at step 4 of 8: no improvement in 1 evaluations"
        assert (again.code, again.message, again.facts["step"]) == (0, said, 4)
        assert again.facts["evaluation"]["loss"] == 5.5
    assert sorted(values(config, "evaluation")) == [0, 2, 4]
    assert sorted(values(config, "samples")) == [1, 2, 3, 4]
    chosen = select(config)
    assert (chosen.ref.path, chosen.last_step, chosen.before["loss"], chosen.after["loss"]) == (
        "checkpoints/1/best-2", 4, 6.0, 5.0
    )  # fmt: skip


def test_rows_are_limited_and_batches_change_nothing(tmp_path: Path) -> None:
    found: list[Any] = []
    for number, evaluation in enumerate(({"batchSize": 1}, {"batchSize": 4}, {"maxRows": 2})):
        root = tmp_path / str(number)
        config = prepared_job(root, {"evaluation": evaluation}, steps=1)
        assert train_here(config, root / "scratch").code == 0
        found.append(values(config, "evaluation")[0])
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-6)
    assert found[0]["tokens"] == found[1]["tokens"]
    assert found[2]["tokens"] < found[0]["tokens"]


def test_training_is_not_changed_by_evaluating(tmp_path: Path) -> None:
    weights = []
    for every in (1, 100):
        root = tmp_path / str(every)
        config = prepared_job(root, steps=4, evaluate_every=every, dropout=0.1)
        assert train_here(config, root / "scratch").code == 0
        folder = Layout(Path(config.mounts.workspace)).checkpoint(1, 4)
        weights.append((folder / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]
