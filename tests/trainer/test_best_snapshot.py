"""The snapshot of the best evaluation: outlives a lost node, and is granted the time of a save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.names import MANIFEST, Layout
from finetune_trainer.callbacks import hang
from finetune_trainer.callbacks.evaluation import Evaluation
from finetune_trainer.checkpoint import save
from finetune_trainer.export.select import select
from harness.prepared_job import prepared_job, train_here, with_attempt


class NodeLost(Exception):
    """Stands for a process that is gone between two steps."""


def evaluations(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
    """Let the evaluations come to these losses, by step; at any other step the node is lost."""

    def sums(_: Evaluation, trainer: Any) -> tuple[float, float]:
        if trainer.state.global_step not in losses:
            raise NodeLost
        return losses[trainer.state.global_step], 1.0

    monkeypatch.setattr(Evaluation, "_sums", sums)


def committed(layout: Layout) -> list[str]:
    found = layout.checkpoints.glob(f"*/*/{MANIFEST}")
    return sorted(path.parent.relative_to(layout.checkpoints).as_posix() for path in found)


def test_after_a_lost_node_the_best_that_there_was_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 6 is trained again and does not come out as well, as on an accelerator it may."""
    config = prepared_job(tmp_path, {"checkpoint": {"everySteps": 5}}, steps=12, evaluate_every=3)
    layout = Layout(Path(config.mounts.workspace))
    evaluations(monkeypatch, {0: 6.0, 3: 5.0, 6: 4.99})
    with pytest.raises(NodeLost):
        train_here(config, tmp_path / "scratch")
    assert committed(layout) == ["1/best-3", "1/best-6", "1/step-5"]

    evaluations(monkeypatch, {6: 5.01, 9: 5.5, 12: 5.5})
    assert train_here(with_attempt(config, 2, 1, 2), tmp_path / "again").code == 0
    assert committed(layout) == ["1/best-3", "1/best-6", "1/step-5", "2/step-10", "2/step-12"]
    chosen = select(config)
    assert (chosen.ref.path, chosen.after["loss"]) == ("checkpoints/1/best-3", 5.0)


def test_a_snapshot_goes_when_no_checkpoint_that_is_kept_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved after 5, 10, 12, two are kept: 10 needs the snapshot of 9, and 12 that of 12."""
    spec = {"checkpoint": {"everySteps": 5, "keep": 2}}
    config = prepared_job(tmp_path, spec, steps=12, evaluate_every=3)
    evaluations(monkeypatch, {0: 6.0, 3: 5.0, 6: 4.0, 9: 3.0, 12: 2.0})
    assert train_here(config, tmp_path / "scratch").code == 0
    layout = Layout(Path(config.mounts.workspace))
    assert committed(layout) == ["1/best-12", "1/best-9", "1/step-10", "1/step-12"]
    assert select(config).after["loss"] == 2.0


def test_a_snapshot_is_granted_the_time_of_a_save_and_counts_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted: dict[str, float] = {}
    times = [1.0]
    patient, write = hang.Watchdog.patient, save.write_weights

    def heard(self: hang.Watchdog, wanted: float) -> None:
        times.append(wanted)
        patient(self, wanted)

    def written(trainer: Any, folder: Path, leads: bool) -> None:
        granted[folder.name] = times[-1]
        write(trainer, folder, leads)

    monkeypatch.setattr(hang.Watchdog, "patient", heard)
    monkeypatch.setattr(save, "write_weights", written)
    config = prepared_job(tmp_path, steps=2, evaluate_every=1)
    evaluations(monkeypatch, {0: 6.0, 1: 5.0, 2: 5.5})
    assert train_here(config, tmp_path / "scratch").code == 0
    assert granted == {"best-1": 6.0, "step-2": 6.0}
    assert times[-1] == 1.0


def test_a_newer_claim_ends_a_gang_that_has_a_new_best_and_nothing_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepared_job(tmp_path, {"checkpoint": {"everySteps": 5}}, steps=12, evaluate_every=3)
    layout = Layout(Path(config.mounts.workspace))
    commit = save.Checkpoints._commit

    def superseded(self: save.Checkpoints, folder: Path, manifest: Any) -> Any:
        done = commit(self, folder, manifest)
        if folder.name == "best-9":
            layout.claim(2).write_text("{}")
        return done

    monkeypatch.setattr(save.Checkpoints, "_commit", superseded)
    evaluations(monkeypatch, {0: 6.0, 3: 5.0, 6: 4.0, 9: 3.0})
    assert train_here(config, tmp_path / "scratch").code == ExitCode.FENCED == 21
    assert committed(layout) == ["1/best-3", "1/best-6", "1/best-9", "1/step-5"]
