"""Thirty steps beside TRL's SFTTrainer, from the same weights and the same token tensors."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.peer import Comparison, random_rows, run_ours, run_peer
from harness.tiny_model import make_tiny_model

STEPS = 30


@pytest.mark.timeout(600)
@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
def test_losses_and_gradient_norms_are_those_of_the_peer(tmp_path: Path, packed: bool) -> None:
    comparison = Comparison(
        model=make_tiny_model(tmp_path / "model"),
        rows=random_rows(8 * STEPS, documents=3 if packed else 1, longest=40),
        packed=packed,
        steps=STEPS,
    )
    peer = run_peer(tmp_path / "peer", comparison)
    ours = run_ours(tmp_path / "ours", comparison)
    assert len(ours.logs) == len(peer.logs) == STEPS
    losses = [abs(a["loss"] - b["loss"]) for a, b in zip(ours.logs, peer.logs, strict=True)]
    norms = [abs(a["norm"] - b["norm"]) for a, b in zip(ours.logs, peer.logs, strict=True)]
    print(f"largest difference: loss {max(losses):.2e}, gradient norm {max(norms):.2e}")
    assert max(losses) <= 1e-5
    assert max(norms) <= 1e-4
    # The comparison means nothing if nothing was learnt.
    assert peer.logs[-1]["loss"] != pytest.approx(peer.logs[0]["loss"], abs=1e-3)
