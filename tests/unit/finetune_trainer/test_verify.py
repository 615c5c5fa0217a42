"""A checkpoint is what its manifest proves; the newest of the lineage is chosen, or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from finetune_api.checkpoint import CheckpointRef, Rejected
from finetune_api.exit_codes import ExitCode
from finetune_api.names import MANIFEST, Layout
from finetune_trainer.checkpoint import claim as claims
from finetune_trainer.checkpoint import retention, verify
from finetune_trainer.checkpoint.gang import Gang
from finetune_trainer.checkpoint.restore import _choose
from finetune_trainer.errors import StageError
from harness.checkpoint_folders import EXPECTED, contents, flip_byte, make_checkpoint, write_files


def take(layout: Layout, resumes_from: CheckpointRef | None = None) -> int:
    return claims.take(
        layout, job_uid=EXPECTED.job_uid, attempt=1, pod_uid="p", resumes_from=resumes_from
    ).sequence


def search(
    layout: Layout, known: CheckpointRef | None = None
) -> tuple[CheckpointRef | None, tuple[Rejected, ...]]:
    """What a gang of one rank that knows how to read both ranks' files would resume from."""
    walk = verify.Search(layout, EXPECTED, 2, known)
    found = _choose(walk, Gang(rank=1))
    walk.settle(found)
    return (found.ref if found else None), walk.rejected


def test_an_empty_folder_starts_at_step_0(tmp_path: Path) -> None:
    assert search(Layout(tmp_path)) == (None, ())


def test_the_newest_of_the_own_claim_is_chosen(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    make_checkpoint(layout, 1, 9)
    newest = make_checkpoint(layout, 1, 10)
    assert newest.path == "checkpoints/1/step-10"
    assert search(layout) == (newest, ())


def test_a_higher_step_of_another_lineage_is_no_candidate(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    low = make_checkpoint(layout, 1, 10)
    take(layout, low)
    newest = make_checkpoint(layout, 2, 15)
    make_checkpoint(layout, 1, 20)  # the older gang went on before it saw the claim
    assert search(layout) == (newest, ())


def test_an_unfinished_save_is_passed_over_and_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    good = make_checkpoint(layout, 1, 10)
    write_files(layout.checkpoint(1, 20), 20)
    assert search(layout) == (
        good,
        (
            Rejected(
                path="checkpoints/1/step-20",
                step=20,
                reason="no manifest.json: it was never finished, or is being deleted",
            ),
        ),
    )


def test_only_an_unfinished_save_is_no_progress(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    write_files(layout.checkpoint(1, 20), 20)
    chosen, rejected = search(layout)
    assert chosen is None
    assert [item.step for item in rejected] == [20]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: flip_byte(f / "rng_state_0.pth"), "rng_state_0.pth has another content"),
        (lambda f: flip_byte(f / "rng_state_1.pth"), "rng_state_1.pth has another content"),
        (lambda f: (f / "rng_state_1.pth").write_bytes(b""), "has 0 bytes, its manifest says 17"),
        (lambda f: (f / "rng_state_0.pth").unlink(), "rng_state_0.pth is missing"),
        (lambda f: (f / MANIFEST).write_text("{"), "cannot be read as one"),
        (lambda f: (f / MANIFEST).write_text("[]"), "cannot be read as one"),
        (lambda f: (f / MANIFEST).write_text('{"step": 20}'), "cannot be read as one"),
    ],
)
def test_a_damaged_checkpoint_is_rejected_for_the_one_before(tmp_path, damage, reason) -> None:
    layout = Layout(tmp_path)
    take(layout)
    good = make_checkpoint(layout, 1, 10)
    newest = make_checkpoint(layout, 1, 20)
    damage(layout.checkpoint(1, 20))
    chosen, rejected = search(layout, known=newest)
    assert chosen == good
    assert [item.path for item in rejected] == ["checkpoints/1/step-20"]
    assert reason in rejected[0].reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"job_uid": "another"}, "job uid is another, the job's is 00000000"),
        ({"dataset_fingerprint": "sha256:" + "9" * 64}, "dataset fingerprint is sha256:9"),
        ({"model_digest": "sha256:" + "9" * 64}, "model digest is sha256:9"),
        ({"tokenizer_digest": "sha256:" + "9" * 64}, "tokenizer digest is sha256:9"),
        ({"engine": "zero-2"}, "engine is zero-2, the job's is ddp"),
        ({"method": "full"}, "method is full, the job's is lora"),
        ({"precision": "bf16"}, "precision is bf16, the job's is fp32"),
        ({"global_batch_size": 8}, "global batch size is 8, the job's is 4"),
        ({"seed": 7}, "seed is 7, the job's is 42"),
        ({"step": 21}, "its manifest is that of step 21 of claim 1"),
        ({"claim": 3}, "its manifest is that of step 20 of claim 3"),
        ({"kind": "best"}, "its manifest is that of step 20 of claim 1"),
    ],
)
def test_a_checkpoint_of_another_training_is_rejected(tmp_path, changes, reason) -> None:
    layout = Layout(tmp_path)
    take(layout)
    good = make_checkpoint(layout, 1, 10)
    folder = layout.checkpoint(1, 20)
    make_checkpoint(layout, 1, 20, changes)
    assert (folder / MANIFEST).exists()
    chosen, rejected = search(layout)
    assert chosen == good
    assert rejected[0].reason.startswith(reason)


def test_a_file_outside_the_folder_is_never_read(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    good = make_checkpoint(layout, 1, 10)
    make_checkpoint(layout, 1, 20)
    manifest = layout.checkpoint(1, 20) / MANIFEST
    data = json.loads(manifest.read_text())
    data["files"][0]["path"] = "../step-10/rng_state_0.pth"
    manifest.write_text(json.dumps(data))
    chosen, rejected = search(layout)
    assert chosen == good
    assert rejected[0].reason == "../step-10/rng_state_0.pth lies outside the checkpoint"


def test_another_manifest_than_the_verified_one_is_rejected(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    good = make_checkpoint(layout, 1, 10)
    known = make_checkpoint(layout, 1, 20)
    shutil.rmtree(layout.checkpoint(1, 20))
    make_checkpoint(layout, 1, 20, {"epoch": 0.5})
    chosen, rejected = search(layout, known=known)
    assert chosen == good
    assert rejected[0].reason == (
        "its manifest is not the one that was verified when it was written"
    )


def test_nothing_usable_after_progress_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    for step in (10, 20):
        make_checkpoint(layout, 1, step)
        flip_byte(layout.checkpoint(1, step) / "rng_state_0.pth")
    with pytest.raises(StageError) as caught:
        search(layout)
    assert caught.value.exit_code == ExitCode.CHECKPOINT_UNUSABLE == 15
    problem = caught.value.problems[0]
    assert problem.code == "checkpoint-unusable"
    assert problem.message == (
        "training had made progress, and no checkpoint can be used: "
        "step 20: rng_state_0.pth has another content than its manifest says; "
        "step 10: rng_state_0.pth has another content than its manifest says"
    )


def test_a_single_checkpoint_with_an_unreadable_manifest_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    make_checkpoint(layout, 1, 10)
    (layout.checkpoint(1, 10) / MANIFEST).write_text("{")
    with pytest.raises(StageError) as caught:
        search(layout)
    assert caught.value.exit_code == 15


def test_a_known_checkpoint_in_an_empty_folder_is_refused(tmp_path: Path) -> None:
    known = CheckpointRef(step=30, path="checkpoints/1/step-30", digest="sha256:" + "a" * 64)
    with pytest.raises(StageError) as caught:
        search(Layout(tmp_path), known=known)
    assert caught.value.exit_code == 15
    assert caught.value.problems[0].message == (
        "the checkpoint of step 30 (checkpoints/1/step-30) was verified before, and nothing at or "
        "after it can be used"
    )


def test_a_known_checkpoint_that_vanished_is_refused_though_an_older_one_is_there(tmp_path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    make_checkpoint(layout, 1, 10)
    known = make_checkpoint(layout, 1, 20)
    shutil.rmtree(layout.checkpoint(1, 20))
    with pytest.raises(StageError) as caught:
        search(layout, known=known)
    assert caught.value.exit_code == 15


def test_a_known_checkpoint_that_rotated_out_needs_a_newer_one(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    known = make_checkpoint(layout, 1, 10)
    newer = make_checkpoint(layout, 1, 20)
    shutil.rmtree(layout.checkpoint(1, 10))
    assert search(layout, known=known) == (newer, ())


def test_another_world_size_is_refused_with_the_way_out(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    make_checkpoint(layout, 1, 10, {"world_size": 4})
    with pytest.raises(StageError) as caught:
        search(layout)
    assert caught.value.exit_code == ExitCode.INVALID_CONFIG
    assert caught.value.problems[0].code == "world-size-changed"
    assert caught.value.problems[0].fix == "run the attempt with 4 ranks, as before"


class Histories(RuleBasedStateMachine):
    """Random lives of a job against a list: the line of checkpoints that led to each claim."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.layout = Layout(Path(self.folder.name))
        self.lines: dict[int, list[tuple[int, int]]] = {}
        self.intact: set[tuple[int, int]] = set()
        self.committed: set[tuple[int, int]] = set()
        self.claim = 0
        self.step = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    @property
    def line(self) -> list[tuple[int, int]]:
        return self.lines.get(self.claim, [])

    def expected(self) -> tuple[int, int] | None:
        return next((place for place in reversed(self.line) if place in self.intact), None)

    def stuck(self) -> bool:
        resumed = any(
            claim and claim.resumes_from for claim in claims.read_all(self.layout).values()
        )
        return self.expected() is None and (
            resumed or any(place in self.committed for place in self.line)
        )

    @precondition(lambda self: not self.stuck())
    @rule()
    def a_gang_starts(self) -> None:
        chosen, _ = search(self.layout)
        want = self.expected()
        line = self.line[: self.line.index(want) + 1] if want else []
        self.claim = take(self.layout, chosen)
        self.lines[self.claim] = list(line)
        self.step = line[-1][1] if line else 0

    @precondition(lambda self: self.claim > 0)
    @rule(advance=st.integers(1, 5))
    def it_saves(self, advance: int) -> None:
        self.step += advance
        make_checkpoint(self.layout, self.claim, self.step)
        self.line.append((self.claim, self.step))
        self.intact.add((self.claim, self.step))
        self.committed.add((self.claim, self.step))

    @precondition(lambda self: self.claim > 0)
    @rule(advance=st.integers(1, 5))
    def a_save_is_cut_short(self, advance: int) -> None:
        self.step += advance
        write_files(self.layout.checkpoint(self.claim, self.step), self.step)
        self.line.append((self.claim, self.step))

    @precondition(lambda self: self.claim > 1)
    @rule(data=st.data(), step=st.integers(100, 200))
    def a_fenced_gang_commits_late(self, data: st.DataObject, step: int) -> None:
        old = data.draw(st.integers(1, self.claim - 1))
        if not self.layout.checkpoint(old, step).exists():
            make_checkpoint(self.layout, old, step)

    @precondition(lambda self: bool(self.intact))
    @rule(data=st.data())
    def a_checkpoint_is_damaged(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.intact)))
        flip_byte(self.layout.checkpoint(*place) / f"rng_state_{data.draw(st.integers(0, 1))}.pth")
        self.intact.discard(place)

    @precondition(lambda self: self.claim > 0)
    @rule(keep=st.integers(1, 3))
    def old_ones_are_deleted(self, keep: int) -> None:
        claim = claims.read(self.layout, self.claim)
        assert claim is not None
        usable = [place for place in self.line if place in self.intact]
        kept = set(usable[-keep:])
        before = contents(self.layout.checkpoints)
        deleted = retention.Retention(self.layout, claim, keep).prune()
        after = contents(self.layout.checkpoints)
        for place in kept:
            assert (self.layout.checkpoint(*place) / MANIFEST).exists()
        gone = {
            (int(folder.parent.name), int(folder.name.removeprefix("step-"))) for folder in deleted
        }
        oldest = self.line.index(usable[-keep]) if len(usable) >= keep else 0
        for place in gone:
            if place in self.line:
                cut_short = place not in self.committed and place[0] < self.claim
                assert self.line.index(place) < oldest or cut_short
            else:
                assert place not in self.committed
        prefixes = tuple(f"{claim}/step-{step}/" for claim, step in gone)
        assert after == {k: v for k, v in before.items() if not k.startswith(prefixes or "\0")}
        for line in self.lines.values():
            line[:] = [place for place in line if place not in gone]
        self.intact -= gone

    @invariant()
    def the_choice_is_the_newest_intact_of_the_line(self) -> None:
        if self.stuck():
            with pytest.raises(StageError):
                search(self.layout)
            return
        chosen, rejected = search(self.layout)
        want = self.expected()
        assert (chosen.path if chosen else None) == (
            f"checkpoints/{want[0]}/step-{want[1]}" if want else None
        )
        newer = self.line[self.line.index(want) + 1 :] if want else self.line
        assert [item.path for item in rejected] == [
            f"checkpoints/{claim}/step-{step}" for claim, step in reversed(newer)
        ]


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestHistories = Histories.TestCase
