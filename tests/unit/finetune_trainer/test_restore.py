"""An older gang that still writes while a newer one chooses what to go on from."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.checkpoint import CheckpointRef, Claim, Manifest
from finetune_api.names import MANIFEST, Layout
from finetune_api.resolved import Attempt, Choices, StageConfig
from finetune_trainer.checkpoint import claim as claims
from finetune_trainer.checkpoint import restore, retention, verify
from finetune_trainer.checkpoint.gang import Gang
from finetune_trainer.errors import StageError
from harness.checkpoint_folders import EXPECTED, flip_byte, make_checkpoint
from harness.stage_config import make_config


@pytest.fixture
def config(tmp_path: Path) -> StageConfig:
    choices = Choices(
        fingerprint=EXPECTED.dataset_fingerprint,
        model_path="pvc://models/tiny",
        model_digest=EXPECTED.model_digest,
        tokenizer_digest=EXPECTED.tokenizer_digest,
        train_sequences=40,
        validation_sequences=0,
        packing=False,
        global_batch_size=EXPECTED.global_batch_size,
        micro_batch_size=1,
        micro_batch_chosen=True,
        steps_per_epoch=10,
        total_steps=100,
    )
    attempt = Attempt(number=2, nodes=1, processes_per_node=1, micro_batch_size=1)
    return make_config(tmp_path, "train", choices=choices, attempt=attempt)


class Older:
    """A gang with a claim, that saves and deletes as long as it is not fenced."""

    def __init__(self, config: StageConfig, keep: int) -> None:
        self.layout = Layout(Path(config.mounts.workspace))
        self.claim = claims.take(
            self.layout, job_uid=EXPECTED.job_uid, attempt=1, pod_uid="older", resumes_from=None
        )
        self.deletion = retention.Retention(self.layout, self.claim, keep)

    def saves(self, step: int) -> CheckpointRef:
        claims.fence(self.layout, self.claim.sequence)
        ref = make_checkpoint(self.layout, self.claim.sequence, step, {"world_size": 1})
        self.deletion.begin(ref)
        self.deletion.finish()
        return ref

    def steps(self) -> list[int]:
        return sorted(
            int(path.parent.name.removeprefix("step-"))
            for path in self.layout.checkpoints.glob(f"1/*/{MANIFEST}")
        )


def during_the_reading_of(
    monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]
) -> list[int]:
    """Let something happen after a checkpoint was read, once; returns the steps as they are read."""
    read: list[int] = []
    check = verify.check_contents

    def checked(folder: Path, manifest: Manifest, ranks: set[int] | None = None) -> None:
        check(folder, manifest, ranks)
        if ranks is None:  # not one who chooses
            return
        read.append(manifest.step)
        if read == [step]:
            act()

    monkeypatch.setattr(verify, "check_contents", checked)
    return read


def started(config: StageConfig) -> restore.Start:
    return restore.start(config, Gang(), pod_uid="newer")


def test_nothing_happens_meanwhile(config: StageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    older = Older(config, keep=1)
    ten = older.saves(10)
    read = during_the_reading_of(monkeypatch, 10, lambda: None)
    start = started(config)
    assert (start.claim.sequence, start.resume, start.rejected) == (2, ten, ())
    assert start.folder == older.layout.checkpoint(1, 10)
    assert read == [10]


@pytest.mark.parametrize("keep", [1, 3])
def test_what_the_older_gang_saved_meanwhile_is_gone_on_from(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    older = Older(config, keep)
    older.saves(10)
    read = during_the_reading_of(monkeypatch, 10, lambda: older.saves(20))
    start = started(config)
    assert older.steps() == ([20] if keep == 1 else [10, 20])
    assert start.resume is not None
    assert start.resume.path == "checkpoints/1/step-20"
    assert start.folder == older.layout.checkpoint(1, 20)
    assert read == [10, 20]
    assert start.claim == claims.read(older.layout, start.claim.sequence)
    assert claims.sequences(older.layout) == [1, 2, 3]
    assert start.claim.sequence == 3
    with pytest.raises(StageError) as caught:
        older.saves(30)
    assert caught.value.exit_code == 21
    # The next attempt finds it too, also where the operator knows it.
    monkeypatch.undo()
    again = started(
        config.model_copy(
            update={"attempt": config.attempt.model_copy(update={"known": start.resume})}
        )
    )
    assert again.resume == start.resume


def before_a_claim_is_taken(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let something happen after the choice was made, once."""
    take, done = claims.take, []

    def taken(*args: object, **named: object) -> Claim:
        if not done:
            done.append(act())
        return take(*args, **named)

    monkeypatch.setattr(claims, "take", taken)


def shorten(folder: Path) -> None:
    file = folder / "rng_state_0.pth"
    file.write_bytes(file.read_bytes()[:-1])


def test_the_first_checkpoint_of_all_comes_after_nothing_was_found(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Older(config, keep=1)
    before_a_claim_is_taken(monkeypatch, lambda: older.saves(10))
    start = started(config)
    assert start.resume is not None
    assert start.resume.path == "checkpoints/1/step-10"
    assert start.claim.sequence == 3


def test_the_first_checkpoint_of_all_comes_late_and_cut_short(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training does not begin anew beside it, as it would not had it come a moment earlier."""
    older = Older(config, keep=1)

    def saved_and_cut() -> None:
        older.saves(10)
        shorten(older.layout.checkpoint(1, 10))

    before_a_claim_is_taken(monkeypatch, saved_and_cut)
    with pytest.raises(StageError) as caught:
        started(config)
    assert caught.value.exit_code == 15
    assert "step 10: rng_state_0.pth has" in caught.value.problems[0].message


def test_a_newer_one_that_is_cut_short_is_named(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Older(config, keep=3)
    ten = older.saves(10)

    def saved_and_cut() -> None:
        older.saves(20)
        shorten(older.layout.checkpoint(1, 20))

    read = during_the_reading_of(monkeypatch, 10, saved_and_cut)
    start = started(config)
    assert (start.claim.sequence, start.resume) == (3, ten)
    assert [item.path for item in start.rejected] == ["checkpoints/1/step-20"]
    assert start.claim == claims.read(older.layout, 3)
    assert read == [10]


def test_a_newer_one_that_is_damaged_is_claimed_read_and_passed_over(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Older(config, keep=3)
    ten = older.saves(10)

    def saved_and_damaged() -> None:
        older.saves(20)
        flip_byte(older.layout.checkpoint(1, 20) / "rng_state_0.pth")

    during_the_reading_of(monkeypatch, 10, saved_and_damaged)
    start = started(config)
    assert start.resume == ten
    assert start.folder == older.layout.checkpoint(1, 10)
    assert [item.path for item in start.rejected] == ["checkpoints/1/step-20"]
    named = [claims.read(older.layout, number) for number in (2, 3, 4)]
    assert [c and c.resumes_from and c.resumes_from.step for c in named] == [10, 20, 10]
    assert start.claim == named[2]


def test_a_damaged_one_is_read_once_and_costs_no_claim(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Older(config, keep=3)
    ten = older.saves(10)
    older.saves(20)
    flip_byte(older.layout.checkpoint(1, 20) / "rng_state_0.pth")
    read = []
    sha256 = verify.sha256

    def hashed(path: Path) -> str:
        read.append(path.parent.name)
        return sha256(path)

    monkeypatch.setattr(verify, "sha256", hashed)
    start = started(config)
    assert (start.claim.sequence, start.resume) == (2, ten)
    assert [item.step for item in start.rejected] == [20]
    assert read == ["step-20", "step-10"]


def test_what_was_chosen_is_gone_and_nothing_newer_is_there(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Older(config, keep=1)
    older.saves(10)
    folder = older.layout.checkpoint(1, 10)
    during_the_reading_of(monkeypatch, 10, lambda: shutil.rmtree(folder))
    with pytest.raises(StageError) as caught:
        started(config)
    assert caught.value.exit_code == 15
    assert caught.value.problems[0].message == (
        "the checkpoint of step 10 (checkpoints/1/step-10) was verified before, and nothing at or "
        "after it can be used"
    )


def test_a_third_gang_has_claimed_an_older_one_meanwhile(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was verified is still there, so no work is done again."""
    older = Older(config, keep=3)
    ten = older.saves(10)
    twenty = older.saves(20)

    def third() -> None:
        claims.take(
            older.layout, job_uid=EXPECTED.job_uid, attempt=2, pod_uid="third", resumes_from=ten
        )

    during_the_reading_of(monkeypatch, 20, third)
    start = started(config)
    assert (start.claim.sequence, start.resume) == (3, twenty)


def test_a_third_gang_takes_a_claim_after_this_one(
    config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Older(config, keep=3)
    older.saves(10)
    take, taken = claims.take, []

    def overtaken(*args: object, **named: object) -> Claim:
        taken.append(take(*args, **named))
        if len(taken) == 1:
            make_checkpoint(older.layout, 1, 20, {"world_size": 1})
            taken.append(take(*args, **named))
        return taken[0]

    monkeypatch.setattr(claims, "take", overtaken)
    with pytest.raises(StageError) as caught:
        started(config)
    assert caught.value.exit_code == 21
    assert claims.sequences(older.layout) == [1, 2, 3]


@pytest.mark.parametrize("name", ["a[1]", "b*", "c?"])
def test_a_folder_whose_name_is_a_pattern_has_another_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "step-4"
    (folder / "global_step4").mkdir(parents=True)
    with restore.plain(folder) as other:
        assert [Path(path).name for path in glob.glob(f"{other}/global_step*")] == ["global_step4"]
        assert other.resolve() == folder
    assert not other.exists()


def test_a_plain_name_stays(tmp_path: Path) -> None:
    with restore.plain(tmp_path) as name:
        assert name == tmp_path
