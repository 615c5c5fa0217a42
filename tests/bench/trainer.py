"""Tokens a second of our trainer and of TRL's SFTTrainer, interleaved, on the same tokens.

    make bench B=trainer

Both train the same model (four layers of size 256) from the same weights on the same rows in the
same order, with two processes of one thread each. Counted are the tokens of all steps after the
first, over the time between the log lines of the first and the last step, seen from outside.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.peer import Comparison, random_rows, run_ours, run_peer, tokens_between_logs
from harness.tiny_model import make_tiny_model


def compare(model: Path, *, packed: bool, lora: bool, steps: int, runs: int) -> None:
    """Print one row: the median of each side with its spread, and of the ratios run by run."""
    comparison = Comparison(
        model=model,
        rows=random_rows(8 * steps, documents=4 if packed else 1, longest=160),
        packed=packed,
        steps=steps,
        lora={"r": 16, "alpha": 32} if lora else None,
        logging_steps=steps,
    )
    tokens = tokens_between_logs(comparison)
    ours, peers = [], []
    for number in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            # Whoever goes first in a pair changes, so that a drift of the machine hits both.
            for side in ("ours", "peer") if number % 2 else ("peer", "ours"):
                if side == "ours":
                    ours.append(tokens / run_ours(root / "ours", comparison).seconds)
                else:
                    peers.append(tokens / run_peer(root / "peer", comparison).seconds)
        print(f"  run {number + 1}/{runs}: ours {ours[-1]:,.0f}, peer {peers[-1]:,.0f}", flush=True)
    ratios = [a / b for a, b in zip(ours, peers, strict=True)]
    name = f"{'LoRA' if lora else 'full'}, {'packed' if packed else 'unpacked'}"
    cells = [
        f"{statistics.median(side):>8,.0f} ({min(side):,.0f}-{max(side):,.0f})"
        for side in (ours, peers)
    ]
    ratio = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
    print(f"{name:<16} ours {cells[0]}  TRL {cells[1]}  ratio {ratio}", flush=True)


def main() -> None:
    """Run the comparisons that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--only", choices=["full", "lora"], default=None)
    arguments = parser.parse_args()
    print("tokens a second: median (least-most) of interleaved runs; 2 processes, 1 thread each")
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder) / "model", hidden_size=256, layers=4)
        for lora in (False, True):
            for packed in (False, True):
                if arguments.only in (None, "lora" if lora else "full"):
                    compare(
                        model, packed=packed, lora=lora, steps=arguments.steps, runs=arguments.runs
                    )


if __name__ == "__main__":
    main()
