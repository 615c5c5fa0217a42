"""What is deleted was superfluous, and a deletion that is cut short leaves no checkpoint behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.checkpoint import CheckpointRef, Claim
from finetune_api.exit_codes import ExitCode
from finetune_api.names import MANIFEST, Layout
from finetune_trainer.checkpoint import claim as claims
from finetune_trainer.checkpoint import retention
from finetune_trainer.errors import StageError
from harness.checkpoint_folders import EXPECTED, contents, flip_byte, make_checkpoint, write_files


def take(layout: Layout, resumes_from: CheckpointRef | None = None) -> Claim:
    return claims.take(
        layout, job_uid=EXPECTED.job_uid, attempt=1, pod_uid="p", resumes_from=resumes_from
    )


def make_snapshot(layout: Layout, claim: int, step: int) -> None:
    made = make_checkpoint(layout, claim, step, {"kind": "best", "reason": "best"})
    (layout.root / made.path).rename(layout.best(claim, step))


def left(layout: Layout) -> list[str]:
    return sorted(path.relative_to(layout.root).as_posix() for path in layout.root.glob("*/*/*-*"))


@pytest.mark.parametrize(
    ("usable", "keep", "superfluous"),
    [
        ("", 1, ""),
        ("a", 1, ""),
        ("ab", 1, "b"),
        ("abc", 2, "c"),
        ("abc", 3, ""),
        # Capital letters are damaged: they never count, and go once they are old enough.
        ("Ab", 1, ""),
        ("AbcD", 1, "cD"),
        ("aBc", 2, ""),
        ("aBcd", 2, "d"),
        ("ABC", 1, ""),
    ],
)
def test_what_is_superfluous(usable: str, keep: int, superfluous: str) -> None:
    found = retention.superfluous(map(Path, usable), keep, lambda path: path.name.islower())
    assert "".join(path.name for path in found) == superfluous


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 4))
def test_the_newest_usable_ones_always_stay(usable: list[bool], keep: int) -> None:
    asked: list[int] = []

    def look(path: Path) -> bool:
        asked.append(int(path.name))
        return usable[int(path.name)]

    gone = [int(p.name) for p in retention.superfluous(
        (Path(str(i)) for i in range(len(usable))), keep, look
    )]  # fmt: skip
    newest = [index for index, good in enumerate(usable) if good][:keep]
    assert not set(newest) & set(gone)
    assert len(newest) == keep or not gone
    assert sorted(asked + gone) == list(range(len(usable)))


def test_the_newest_of_the_lineage_stay_and_others_are_not_touched(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    for step in (10, 20, 30):
        make_checkpoint(layout, 1, step)
    resumed = CheckpointRef.model_validate(
        {**make_checkpoint(layout, 1, 25).to_json()}
    )  # claim 2 resumed from 25, so 30 is of another line
    claim = take(layout, resumed)
    make_checkpoint(layout, 2, 35)
    make_checkpoint(layout, 2, 45)
    layout.best(1, 15).mkdir()
    (layout.best(1, 15) / MANIFEST).write_text("{}")
    assert retention.Retention(layout, claim, keep=3).prune() == (
        layout.checkpoint(1, 10),
        layout.checkpoint(1, 20),
    )
    assert left(layout) == [
        "checkpoints/1/best-15",
        "checkpoints/1/step-25",
        "checkpoints/1/step-30",
        "checkpoints/2/step-35",
        "checkpoints/2/step-45",
    ]
    retention.Retention(layout, claim, keep=1).prune()
    assert left(layout) == [
        "checkpoints/1/best-15",
        "checkpoints/1/step-30",
        "checkpoints/2/step-45",
    ]


def test_the_one_resumed_from_stays_until_a_newer_one_is_verified(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    make_checkpoint(layout, 1, 10)
    claim = take(layout, make_checkpoint(layout, 1, 20))
    make_checkpoint(layout, 2, 30)
    flip_byte(layout.checkpoint(2, 30) / "rng_state_1.pth")
    assert retention.Retention(layout, claim, keep=1).prune() == (layout.checkpoint(1, 10),)
    make_checkpoint(layout, 2, 40)
    retention.Retention(layout, claim, keep=1).prune()
    assert left(layout) == ["checkpoints/2/step-40"]


def test_saves_that_lower_claims_never_finished_are_deleted_and_own_ones_are_not(tmp_path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    resumed = make_checkpoint(layout, 1, 10)
    write_files(layout.checkpoint(1, 20), 20)
    claim = take(layout, resumed)
    write_files(layout.checkpoint(2, 30), 30)
    assert retention.Retention(layout, claim, keep=3).prune() == (layout.checkpoint(1, 20),)
    assert left(layout) == ["checkpoints/1/step-10", "checkpoints/2/step-30"]


@pytest.mark.parametrize(
    ("snapshots", "checkpoints", "damaged", "needless"),
    [
        # (claim, step); the newest of all and the newest up to each checkpoint are needed.
        ([], [(1, 4)], [], []),
        ([(1, 3)], [], [], []),
        ([(1, 6), (1, 3)], [(1, 4)], [], []),
        ([(1, 6), (1, 3)], [(1, 5), (1, 4)], [], []),
        ([(1, 6), (1, 3)], [(1, 6)], [], [(1, 3)]),
        ([(1, 6), (1, 3)], [(1, 8), (1, 4)], [], []),
        # Between two checkpoints nobody begins: of what was best there, the last is enough.
        ([(1, 7), (1, 6), (1, 3)], [(1, 4)], [], [(1, 6)]),
        ([(1, 9), (1, 6), (1, 3), (1, 2)], [(1, 8), (1, 4)], [], [(1, 2)]),
        # The step of the checkpoint that claim 2 resumed from was evaluated by claim 2 alone.
        ([(2, 4), (1, 3)], [(1, 4)], [], []),
        ([(2, 4), (1, 3)], [(2, 8), (1, 4)], [], []),
        ([(2, 4), (1, 3)], [(2, 8)], [], [(1, 3)]),
        # A damaged one takes nobody's place, and is not deleted for it.
        ([(1, 6), (1, 3)], [(1, 6)], [(1, 6)], []),
        ([(1, 6), (1, 3), (1, 2)], [(1, 6)], [(1, 6)], [(1, 2)]),
        ([(1, 6), (1, 3), (1, 2)], [(1, 6)], [(1, 6), (1, 3)], []),
    ],
)
def test_which_snapshots_nobody_needs(
    snapshots: list[tuple[int, int]],
    checkpoints: list[tuple[int, int]],
    damaged: list[tuple[int, int]],
    needless: list[tuple[int, int]],
) -> None:
    found = retention.needless(snapshots, checkpoints, lambda place: place not in damaged)
    assert list(found) == needless


def test_a_snapshot_of_an_earlier_claim_goes_when_no_checkpoint_of_the_lineage_needs_it(
    tmp_path: Path,
) -> None:
    layout = Layout(tmp_path)
    take(layout)
    resumed = make_checkpoint(layout, 1, 10)
    claim = take(layout, resumed)
    make_checkpoint(layout, 2, 20)
    for number, step in ((1, 5), (1, 9), (1, 15), (2, 14)):
        make_snapshot(layout, number, step)
    worker = retention.Retention(layout, claim, keep=2)
    # Claim 2 began at 10: what claim 1 found best at 15 is of another lineage.
    assert worker.prune() == (layout.best(1, 5),)
    flip_byte(layout.best(1, 9) / "rng_state_0.pth")
    make_checkpoint(layout, 2, 30)
    assert worker.prune() == (layout.checkpoint(1, 10), layout.best(1, 9))
    assert left(layout) == [
        "checkpoints/1/best-15",
        "checkpoints/2/best-14",
        "checkpoints/2/step-20",
        "checkpoints/2/step-30",
    ]


def test_a_new_snapshot_costs_the_one_before_it_and_nothing_else(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    resumed = make_checkpoint(layout, 1, 10)
    make_checkpoint(layout, 1, 5)
    write_files(layout.checkpoint(1, 20), 20)
    worker = retention.Retention(layout, take(layout, resumed), keep=1)
    make_snapshot(layout, 1, 9)
    make_snapshot(layout, 2, 12)
    make_snapshot(layout, 2, 15)
    worker.begin_snapshots(resumed)
    worker.finish()
    assert left(layout) == [
        "checkpoints/1/best-9",
        "checkpoints/1/step-10",
        "checkpoints/1/step-20",
        "checkpoints/1/step-5",
        "checkpoints/2/best-15",
    ]


def test_a_damaged_snapshot_is_no_reason_to_delete_the_one_before_it(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    claim = take(layout)
    make_checkpoint(layout, 1, 10)
    make_snapshot(layout, 1, 5)
    make_snapshot(layout, 1, 9)
    flip_byte(layout.best(1, 9) / "rng_state_0.pth")
    assert retention.Retention(layout, claim, keep=1).prune() == ()


def test_a_fenced_gang_deletes_nothing(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    old = take(layout)
    for step in (10, 20, 30):
        newest = make_checkpoint(layout, 1, step)
    take(layout, newest)
    before = contents(layout.root)
    with pytest.raises(StageError) as caught:
        retention.Retention(layout, old, keep=1).prune()
    assert caught.value.exit_code == ExitCode.FENCED
    assert contents(layout.root) == before


def test_in_the_background_a_fence_is_raised_by_the_next_call(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    old = take(layout)
    make_checkpoint(layout, 1, 10)
    newest = make_checkpoint(layout, 1, 20)
    worker = retention.Retention(layout, old, keep=1)
    take(layout, newest)
    before = contents(layout.root)
    worker.begin(newest)
    with pytest.raises(StageError) as caught:
        worker.finish()
    assert caught.value.exit_code == ExitCode.FENCED
    with pytest.raises(StageError):
        worker.begin(newest)
    assert contents(layout.root) == before


def test_in_the_background_old_ones_go(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    worker = retention.Retention(layout, take(layout), keep=2)
    for step in (10, 20, 30, 40):
        worker.begin(make_checkpoint(layout, 1, step))
    worker.finish()
    assert left(layout) == ["checkpoints/1/step-30", "checkpoints/1/step-40"]


def test_a_deletion_cut_short_leaves_no_checkpoint(tmp_path: Path, monkeypatch) -> None:
    layout = Layout(tmp_path)
    claim = take(layout)
    make_checkpoint(layout, 1, 10)
    make_checkpoint(layout, 1, 20)

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        retention.Retention(layout, claim, keep=1).prune()
    assert not (layout.checkpoint(1, 10) / MANIFEST).exists()
    assert (layout.checkpoint(1, 10) / "rng_state_0.pth").exists()
    assert (layout.checkpoint(1, 20) / MANIFEST).exists()


def test_a_folder_that_cannot_be_deleted_does_not_end_training(
    tmp_path, monkeypatch, caplog
) -> None:
    layout = Layout(tmp_path)
    worker = retention.Retention(layout, take(layout), keep=1)
    make_checkpoint(layout, 1, 10)

    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refused)
        worker.begin(make_checkpoint(layout, 1, 20))
        worker.finish()
    assert "old checkpoints could not be deleted: [Errno 13] Permission denied" in caplog.text
    worker.begin(make_checkpoint(layout, 1, 30))
    worker.finish()
    assert left(layout) == ["checkpoints/1/step-30"]


def test_a_folder_that_cannot_be_deleted_is_no_reason_to_keep_the_others(
    tmp_path, monkeypatch, caplog
) -> None:
    layout = Layout(tmp_path)
    worker = retention.Retention(layout, take(layout), keep=1)
    for step in (10, 20, 30):
        make_checkpoint(layout, 1, step)
    rmtree = shutil.rmtree

    def held_open(folder: Path) -> None:
        if folder == layout.checkpoint(1, 10):
            raise OSError(39, "Directory not empty")
        rmtree(folder)

    monkeypatch.setattr(shutil, "rmtree", held_open)
    worker.begin(make_checkpoint(layout, 1, 40))
    worker.finish()
    assert left(layout) == ["checkpoints/1/step-10", "checkpoints/1/step-40"]
    assert not (layout.checkpoint(1, 10) / MANIFEST).exists()
    assert "old checkpoints could not be deleted: [Errno 39] Directory not empty" in caplog.text
