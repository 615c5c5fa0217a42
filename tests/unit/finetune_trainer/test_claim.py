"""Claims are numbered without gaps, fence all lower ones, and tell where a run came from."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from finetune_api.checkpoint import CheckpointRef, Claim
from finetune_api.exit_codes import ExitCode
from finetune_api.names import Layout
from finetune_trainer.checkpoint import claim as claims
from finetune_trainer.errors import StageError
from harness.checkpoint_folders import EXPECTED


def ref(claim: int, step: int) -> CheckpointRef:
    return CheckpointRef(
        step=step, path=f"checkpoints/{claim}/step-{step}", digest="sha256:" + "a" * 64
    )


def take(layout: Layout, resumes_from: CheckpointRef | None = None, attempt: int = 1) -> Claim:
    return claims.take(
        layout,
        job_uid=EXPECTED.job_uid,
        attempt=attempt,
        pod_uid="pod-1",
        resumes_from=resumes_from,
    )


def made(*origins: CheckpointRef | None) -> dict[int, Claim | None]:
    return {
        number: Claim(
            sequence=number,
            job_uid="j",
            attempt=1,
            pod_uid="p",
            resumes_from=origin,
            time="2026-01-02T03:04:05Z",
        )
        for number, origin in enumerate(origins, start=1)
    }


def test_claims_are_numbered_from_one_and_survive_on_disk(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    first = take(layout)
    second = take(layout, ref(1, 30), attempt=2)
    assert (first.sequence, second.sequence) == (1, 2)
    assert sorted(path.name for path in layout.claims.iterdir()) == ["1.json", "2.json"]
    assert claims.read(layout, 2) == second
    assert second.resumes_from == ref(1, 30)
    assert second.attempt == 2


def test_gangs_that_start_together_get_different_claims(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    barrier = threading.Barrier(8)
    taken: list[int] = []

    def start() -> None:
        barrier.wait()
        taken.append(take(layout).sequence)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [claim.sequence for claim in claims.read_all(layout).values() if claim] == [
        1, 2, 3, 4, 5, 6, 7, 8,
    ]  # fmt: skip


def test_a_higher_claim_fences(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    assert not claims.newer(layout, 1)
    claims.fence(layout, 1)
    take(layout)
    assert claims.newer(layout, 1)
    assert not claims.newer(layout, 2)
    with pytest.raises(StageError) as caught:
        claims.fence(layout, 1)
    assert caught.value.exit_code == ExitCode.FENCED == 21
    assert caught.value.problems[0].code == "fenced"
    assert "claim 1 was superseded by claim 2" in caught.value.problems[0].message


def test_a_higher_claim_fences_even_when_one_way_of_looking_misses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path)
    for _ in range(3):
        take(layout)
    layout.claim(2).unlink()
    assert claims.newer(layout, 1)  # by the listing
    monkeypatch.setattr(claims, "sequences", lambda _: [1])
    take(layout)  # a listing from a cache: number 2 is tried, and it is free
    assert claims.newer(layout, 1)  # by name


def test_a_claim_cut_short_by_a_crash_still_fences_and_keeps_its_number(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    layout.claim(2).write_bytes(b"")
    assert claims.newer(layout, 1)
    assert claims.read(layout, 2) is None
    assert take(layout).sequence == 3


def test_temporary_and_foreign_files_are_no_claims(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take(layout)
    for name in ("02.json", "2.json.tmp", "x.json", "0.json", "-1.json"):
        (layout.claims / name).write_text("{}")
    assert claims.sequences(layout) == [1]
    assert not claims.newer(layout, 1)


def test_lineage_follows_what_each_claim_resumed_from() -> None:
    span = claims.Span
    assert claims.lineage({}) == ()
    assert claims.lineage(made(None)) == (span(1),)
    assert claims.lineage(made(None, ref(1, 30))) == (span(2), span(1, 30))
    # Claims 2 and 3 both resumed from claim 1: what 2 wrote is another line.
    assert claims.lineage(made(None, ref(1, 30), ref(1, 20))) == (span(3), span(1, 20))
    assert claims.lineage(made(None, ref(1, 30), ref(2, 50), ref(3, 70))) == (
        span(4),
        span(3, 70),
        span(2, 50),
        span(1, 30),
    )
    # A claim that starts at step 0 has no ancestors.
    assert claims.lineage(made(None, ref(1, 30), None)) == (span(3),)


def test_lineage_skips_a_claim_that_cannot_be_read() -> None:
    history = made(None, ref(1, 30), None)
    history[3] = None
    assert claims.lineage(history) == (claims.Span(3), claims.Span(2), claims.Span(1, 30))


def test_lineage_ends_at_a_claim_that_names_no_earlier_one() -> None:
    assert claims.lineage(made(ref(1, 10))) == (claims.Span(1),)
    assert claims.lineage(made(None, ref(7, 10))) == (claims.Span(2),)
    odd = CheckpointRef(step=1, path="checkpoints/../x", digest="sha256:" + "a" * 64)
    assert claims.lineage(made(None, odd)) == (claims.Span(2),)
