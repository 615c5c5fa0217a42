"""What a signal does at each moment, with one rank in this process; two ranks: test_exact_resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from finetune_api.names import MANIFEST, Layout
from finetune_trainer import train as module
from finetune_trainer.callbacks import signals as signals_module
from finetune_trainer.callbacks.cadence import Cadence
from finetune_trainer.checkpoint.gang import Gang
from finetune_trainer.errors import StageError
from finetune_trainer.export.select import select
from finetune_trainer.listener import Listener
from harness.prepared_job import lines, prepared_job, progress, train_here, values, with_attempt


class At(TrainerCallback):  # type: ignore[misc]
    """Makes a listener hear a signal at one moment."""

    def __init__(self, listener: Listener, event: str, step: int) -> None:
        self._listener, self._event, self._step = listener, event, step

    def _maybe(self, event: str, state: Any) -> None:
        if event == self._event and state.global_step == self._step:
            self._listener.heard = True

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._maybe("substep", state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._maybe("step", state)


def train_with(config: Any, scratch: Path, event: str, step: int) -> Any:
    listener = Listener()
    real = module.trainer_class.of

    def with_signal(base: Any) -> Any:
        class Signalled(real(base)):  # type: ignore[misc]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                # Before ours, so that they hear it at the very same moment.
                self.callback_handler.callbacks.insert(0, At(listener, event, step))

        return Signalled

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.trainer_class, "of", with_signal)
        return train_here(config, scratch, listener=listener)


def saved(config: Any) -> dict[str, str]:
    found = Layout(Path(config.mounts.workspace)).checkpoints.glob(f"*/step-*/{MANIFEST}")
    return {
        str(path.parent.relative_to(path.parents[2])): path.read_text().split('"reason": "')[1].split('"')[0]
        for path in found
    }  # fmt: skip


def weights(config: Any, claim: int, step: int) -> bytes:
    folder = Layout(Path(config.mounts.workspace)).checkpoint(claim, step)
    return (folder / "adapter_model.safetensors").read_bytes()


def undisturbed_job(factory: pytest.TempPathFactory, micro_batch: int) -> Any:
    root = factory.mktemp("undisturbed")
    config = prepared_job(root, micro_batch=micro_batch, dropout=0.1)
    assert train_here(config, root / "scratch").code == 0
    return config


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return undisturbed_job(tmp_path_factory, 2)


@pytest.fixture(scope="module")
def undisturbed_whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A step is one micro batch."""
    return undisturbed_job(tmp_path_factory, 8)


@pytest.mark.parametrize(("event", "step"), [("step", 2), ("substep", 2), ("step", 4)])
def test_it_saves_the_last_whole_step_and_resumes_exactly(
    undisturbed: Any, event: str, step: int, tmp_path: Path
) -> None:
    """Inside an accumulation what was accumulated is thrown away, random numbers included."""
    config = prepared_job(tmp_path, micro_batch=2, dropout=0.1)
    outcome = train_with(config, tmp_path / "scratch", event, step)
    assert (outcome.code, outcome.facts["step"]) == (143, step)
    assert saved(config) == {f"1/step-{step}": "signal"}
    assert sorted(values(config, "samples")) == list(range(1, step + 1))
    again = with_attempt(config, 2, 1, 2)
    assert train_here(again, tmp_path / "again").code == 0
    assert values(config, "samples") == values(undisturbed, "samples")
    assert weights(config, 2, 6) == weights(undisturbed, 1, 6)
    assert progress(config).resumed_from is not None


def test_a_signal_in_the_last_step_leaves_its_evaluation_to_the_next_attempt(
    undisturbed: Any, tmp_path: Path
) -> None:
    """Nothing is trained any more; what is published is what an undisturbed job publishes."""
    config = prepared_job(tmp_path, {"checkpoint": {"keep": 1}}, micro_batch=2, dropout=0.1)
    outcome = train_with(config, tmp_path / "scratch", "step", 6)
    assert (outcome.code, outcome.facts["step"]) == (143, 6)
    assert saved(config) == {"1/step-6": "signal"}
    assert sorted(values(config, "evaluation")) == [0, 3]
    with pytest.raises(StageError) as caught:
        select(config)
    assert caught.value.problems[0].code == "last-step-not-evaluated"

    again = train_here(with_attempt(config, 2, 1, 2), tmp_path / "again")
    assert (again.code, again.message, again.facts["step"]) == (0, "6 steps done", 6)
    assert values(config, "evaluation") == values(undisturbed, "evaluation")
    assert again.facts["evaluation"] == values(undisturbed, "evaluation")[6]
    assert values(config, "samples") == values(undisturbed, "samples")
    assert saved(config) == {"2/step-6": "end"}, "the evaluated one takes the other's place"
    here, there = (
        Layout(Path(job.mounts.workspace)).checkpoint(claim, 6)
        for job, claim in ((config, 2), (undisturbed, 1))
    )
    for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    chosen, wanted = select(config), select(undisturbed)
    assert (chosen.manifest.step, chosen.before, chosen.after) == (
        wanted.manifest.step, wanted.before, wanted.after
    )  # fmt: skip

    third = train_here(with_attempt(config, 3, 1, 2), tmp_path / "third")
    assert (third.code, third.facts["evaluation"]) == (0, again.facts["evaluation"])
    assert saved(config) == {"2/step-6": "end"}, "there was nothing left to do"


def test_an_evaluation_that_was_made_up_for_is_saved_with_its_step(
    undisturbed: Any, tmp_path: Path
) -> None:
    """A second signal, in the accumulation after it, does not lose it; nor does it draw numbers."""
    config = prepared_job(tmp_path, micro_batch=2, dropout=0.1)
    assert train_with(config, tmp_path / "scratch", "step", 3).code == 143
    again = with_attempt(config, 2, 1, 2)
    outcome = train_with(again, tmp_path / "again", "substep", 3)
    assert (outcome.code, outcome.facts["step"]) == (143, 3)
    assert saved(config) == {"1/step-3": "signal", "2/step-3": "signal"}
    assert train_here(with_attempt(config, 3, 1, 2), tmp_path / "third").code == 0
    told = [(line["claim"], line["step"]) for line in lines(config) if "evaluation" in line]
    assert told == [(1, 0), (2, 3), (3, 6)]
    assert values(config, "evaluation") == values(undisturbed, "evaluation")
    assert weights(config, 3, 6) == weights(undisturbed, 1, 6)


def test_in_the_first_accumulation_there_is_nothing_to_save(tmp_path: Path) -> None:
    config = prepared_job(tmp_path, validation=0)
    outcome = train_with(config, tmp_path / "scratch", "substep", 0)
    assert (outcome.code, outcome.facts["step"]) == (143, 0)
    assert saved(config) == {}


@pytest.mark.parametrize("step", [0, 3, 6])
def test_an_evaluation_is_cut_short_and_made_again(
    undisturbed_whole: Any, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where a step is one micro batch, none is trained after it."""
    config = prepared_job(tmp_path, micro_batch=8, dropout=0.1)
    listener = Listener()
    seen: list[int] = []
    real = module.Evaluation._batches

    def batches(self: Any) -> Any:
        if self.standing.step == {0: -1, 3: 0, 6: 3}[step]:
            for number, batch in enumerate(real(self)):
                seen.append(number)
                listener.heard = True
                yield batch
        else:
            yield from real(self)

    monkeypatch.setattr(module.Evaluation, "_batches", batches)
    outcome = train_here(config, tmp_path / "scratch", listener=listener)
    monkeypatch.undo()
    assert seen == [0], "after the first batch it stopped"
    assert (outcome.code, outcome.facts["step"]) == (143, step)
    assert saved(config) == ({f"1/step-{step}": "signal"} if step else {})
    assert sorted(values_or_none(config, "evaluation")) == list(range(0, step, 3))
    assert sorted(values_or_none(config, "samples")) == list(range(1, step + 1))
    assert train_here(with_attempt(config, 2, 1, 8), tmp_path / "again").code == 0
    assert values(config, "evaluation") == values(undisturbed_whole, "evaluation")
    assert weights(config, 2, 6) == weights(undisturbed_whole, 1, 6)


def test_a_signal_before_the_first_step_claims_the_right_to_nothing(tmp_path: Path) -> None:
    config = prepared_job(tmp_path)
    listener = Listener()
    listener.heard = True
    assert train_here(config, tmp_path / "scratch", listener=listener).code == 143
    assert saved(config) == {}
    assert values_or_none(config, "loss") == {}


def values_or_none(config: Any, name: str) -> dict[int, Any]:
    path = Layout(Path(config.mounts.workspace)).metrics
    return values(config, name) if path.exists() else {}


def test_by_steps_the_cadence_saves_those_steps(tmp_path: Path) -> None:
    config = prepared_job(tmp_path, {"checkpoint": {"everySteps": 2, "keep": 9}}, validation=0)
    assert train_here(config, tmp_path / "scratch").code == 0
    assert saved(config) == {"1/step-2": "cadence", "1/step-4": "cadence", "1/step-6": "end"}


def test_by_the_clock_it_saves_when_it_is_due(tmp_path: Path) -> None:
    spec = {"checkpoint": {"maxLostWork": "1ms", "maxOverhead": 1.0, "keep": 9}}
    config = prepared_job(tmp_path, spec, validation=0)
    assert train_here(config, tmp_path / "scratch").code == 0
    assert len(saved(config)) > 1


class Distributed:
    """Two ranks' polls, one after the other: enough to see what each is told and when."""

    def __init__(self) -> None:
        self.given: list[list[int]] = [[], []]

    def agreement(self, rank: int) -> Any:
        outer = self

        class Fake(signals_module.Agreement):
            def __init__(self) -> None:
                self.polls = 0

            def poll(self, value: int) -> int:
                outer.given[rank].append(value)
                self.polls += 1
                before = self.polls - 2
                if before < 0:
                    return 0
                return max(given[before] for given in outer.given)

        return Fake()


def test_only_the_first_rank_s_clock_decides_and_all_save_one_micro_batch_later(
    tmp_path: Path,
) -> None:
    config = prepared_job(tmp_path, {"checkpoint": {"maxLostWork": "1ms", "maxOverhead": 1.0}})
    polls = Distributed()
    made = []
    for rank in (0, 1):
        gang = Gang(rank, 2, None)

        class Saves:
            def __init__(self, gang: Gang) -> None:
                self.gang, self.marks = gang, 0

            def mark(self) -> None:
                self.marks += 1

        cadence = Cadence(config.job.spec.checkpoint, clock=iter(range(1000)).__next__)
        made.append(
            signals_module.Signals(
                Listener(), polls.agreement(rank), cadence, Saves(gang),  # type: ignore[arg-type]
                every_steps=None, enter=None, before_saving=None, evaluation_of=None,  # type: ignore[arg-type]
            )
        )  # fmt: skip
    wanted = []
    for step in (1, 2):
        for part in made:
            control = type("Control", (), {"should_save": False})()
            state = type("State", (), {"global_step": step, "max_steps": 9})()
            part.on_step_end(None, state, control)
            wanted.append(control.should_save)
    assert polls.given[1] == [0, 0], "the other rank never asks"
    assert polls.given[0][0] == 1
    assert wanted == [False, False, True, True]
