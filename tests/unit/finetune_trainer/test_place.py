"""Where an output is built: nothing stays of one that fails, and nobody trains for a closed door."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import StageError
from finetune_trainer.export import place

UID = "00000000-0000-4000-8000-000000000001"
URI = "pvc://models/team/out"
NOBODY = 65534


@pytest.fixture
def claim() -> Iterator[Path]:
    """A claim that is read by everybody, and written by its owner alone."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def stranger(claim: Path) -> Iterator[None]:
    """This process is not the claim's owner while the test runs."""
    if os.getuid() != 0:
        claim.chmod(0o555)
        yield
        claim.chmod(0o755)
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_failure_leaves_nothing_and_a_success_all(tmp_path: Path) -> None:
    target = tmp_path / "team" / "out"
    with pytest.raises(RuntimeError), place.staged(target, UID, URI) as staging:
        (staging / "model.safetensors").write_bytes(b"tens of gigabytes")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with place.staged(target, UID, URI) as staging:
        (staging / "model.safetensors").write_bytes(b"tens of gigabytes")
    assert [p.name for p in target.parent.iterdir()] == [".out.00000000"]


def test_what_was_left_by_a_process_that_was_killed_is_cleared(tmp_path: Path) -> None:
    old = tmp_path / ".out.00000000"
    old.mkdir()
    (old / "half").write_bytes(b"half")
    with place.staged(tmp_path / "out", UID, URI) as staging:
        assert (staging, list(staging.iterdir())) == (old, [])


def test_an_output_that_can_be_written(claim: Path) -> None:
    assert place.unwritable(claim / "team" / "out", UID, URI) is None
    assert list(claim.iterdir()) == []


@pytest.mark.usefixtures("stranger")
def test_an_output_that_may_not_be_written_is_said_before_training(claim: Path) -> None:
    problem = place.unwritable(claim / "team" / "out", UID, URI)
    assert problem is not None
    assert (problem.code, problem.field) == ("output-not-writable", "spec.output.uri")
    assert problem.message == (
        f"user {os.geteuid()} may not write pvc://models/team/out: Permission denied"
    )
    with pytest.raises(StageError) as caught, place.staged(claim / "out", UID, URI):
        pass
    assert caught.value.exit_code is ExitCode.INVALID_CONFIG
    assert caught.value.problems[0] == problem


def test_a_claim_that_can_only_be_read_is_said_before_training(
    claim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    problem = place.unwritable(claim / "out", UID, URI)
    assert problem is not None
    assert problem.message.endswith("may not write pvc://models/team/out: Read-only file system")
