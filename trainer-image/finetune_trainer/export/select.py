"""Which checkpoint is published: the best by evaluation, or the last."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from finetune_api.checkpoint import CheckpointRef, Manifest
from finetune_api.exit_codes import ExitCode
from finetune_api.names import Layout
from finetune_api.problem import Problem
from finetune_api.resolved import StageConfig
from finetune_trainer.checkpoint import verify
from finetune_trainer.errors import StageError

STATE_KEY = "finetune-evaluation"


@dataclass(frozen=True)
class Selected:
    """The checkpoint that is published, all of its contents verified."""

    folder: Path
    ref: CheckpointRef
    manifest: Manifest
    last_step: int
    """Of the training."""
    before: dict[str, float]
    """Evaluation of the model before training."""
    after: dict[str, float]
    """Evaluation of what is published; empty where it was not evaluated."""


def select(config: StageConfig) -> Selected:
    """Return the checkpoint to publish.

    The last one has to be intact, because it alone says that training ended. Raises ``StageError``
    (15) when it is not, when there is none, or when it was never evaluated where an earlier one was:
    nobody knows which is better then.
    """
    layout, uid = Layout(Path(config.mounts.workspace)), config.job.uid
    folder, last = _last(layout, uid)
    standing = _standing(folder)
    evaluation = last.evaluation
    if not evaluation and standing.get("step") == last.step:
        evaluation = _numbers(standing.get("latest"))
    chosen = (folder, last)
    if config.job.spec.output.select == "best":
        best = _best(layout, uid, limit=last.step)
        if best is not None and "loss" not in evaluation:
            raise _not_evaluated(last.step, best[1].step)
        if best is not None and best[1].evaluation["loss"] < evaluation["loss"]:
            chosen, evaluation = best, best[1].evaluation
    return Selected(
        folder=chosen[0],
        ref=verify.reference(layout, *chosen),
        manifest=chosen[1],
        last_step=last.step,
        before=_numbers(standing.get("before")),
        after=evaluation,
    )


def _last(layout: Layout, uid: str) -> tuple[Path, Manifest]:
    """Return the newest checkpoint of the lineage, verified."""
    for claim, step in verify.places(layout):
        folder = layout.checkpoint(claim, step)
        try:
            return folder, verify.verified(folder, uid)
        except verify.Incomplete:
            continue  # a save that was cut short; training went on from an earlier one
        except verify.Unusable as error:
            raise _unusable(f"the last checkpoint (step {step}) cannot be used: {error}") from error
    raise _unusable("there is no checkpoint to publish")


def _best(layout: Layout, uid: str, *, limit: int) -> tuple[Path, Manifest] | None:
    """Return the verified snapshot of the lineage with the lowest evaluation loss; None: none."""
    found: list[tuple[float, int, Path]] = []
    for claim, place in verify.snapshots(layout):
        if place > limit:
            continue
        entry = layout.best(claim, place)
        try:
            manifest = verify.read_manifest(entry)
        except verify.Unusable:
            continue
        if manifest.kind == "best" and "loss" in manifest.evaluation:
            found.append((manifest.evaluation["loss"], manifest.step, entry))
    for _, step, folder in sorted(found):
        try:
            return folder, verify.verified(folder, uid)
        except verify.Unusable as error:
            raise _unusable(f"the best snapshot (step {step}) cannot be used: {error}") from error
    return None


def _standing(folder: Path) -> dict[str, object]:
    """Return what the trainer's evaluations came to, as the checkpoint carries it."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        standing = state["stateful_callbacks"][STATE_KEY]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return standing if isinstance(standing, dict) else {}


def _numbers(values: object) -> dict[str, float]:
    if not isinstance(values, dict):
        return {}
    return {str(k): float(v) for k, v in values.items() if isinstance(v, int | float)}


def _not_evaluated(step: int, best: int) -> StageError:
    return StageError(
        ExitCode.CHECKPOINT_UNUSABLE,
        Problem(
            code="last-step-not-evaluated",
            message=f"the best is to be published, and the last step ({step}) was never evaluated: "
            f"it may be better than step {best}, the best of the others",
            fix="run the job again with finetune run, which evaluates it first; on a cluster train "
            "under a new name, or set output.select: last in it",
            field="spec.output.select",
        ),
    )


def _unusable(message: str) -> StageError:
    return StageError(
        ExitCode.CHECKPOINT_UNUSABLE,
        Problem(
            code="checkpoint-unusable",
            message=message[:1024],
            fix="put it back from a copy, or train again from an earlier checkpoint "
            "(recovery.retryGeneration)",
        ),
    )
