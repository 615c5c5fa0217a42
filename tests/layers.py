"""Run the layers of ``make test`` one after the other and print how long each took.

All layers run, even after one has failed; the exit status is 0 only if all passed. The budgets are
for two cores with everything downloaded and built; a layer over its budget is marked, not failed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

BUDGET_MINUTES = {"lint": 1, "unit": 3, "trainer": 10, "cluster": 6, "e2e": 12}
CLOSING = re.compile(r"\d+ (passed|failed|errors?|skipped)\b.* in [\d.]+s")


def run(layer: str) -> tuple[bool, float, str]:
    """Run one layer, showing its output; returns success, seconds and pytest's closing line."""
    print(f"\n=== {layer} ===", flush=True)
    target = layer if layer == "lint" else f"test-{layer}"
    began, closing = time.monotonic(), ""
    with subprocess.Popen(
        ["make", "--no-print-directory", target],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if CLOSING.search(line):
                closing = line.strip(" =\n")
    return process.returncode == 0, time.monotonic() - began, closing


def main(layers: list[str]) -> int:
    """Run ``layers`` and print the table."""
    results = {layer: run(layer) for layer in layers}
    print(f"\n{'layer':10} {'result':8} {'time':>8} {'budget':>8}")
    for layer, (passed, seconds, closing) in results.items():
        budget = BUDGET_MINUTES[layer] * 60
        over = "  over budget" if seconds > budget else ""
        print(
            f"{layer:10} {'passed' if passed else 'FAILED':8} {seconds:7.0f}s {budget:7d}s"
            f"  {closing}{over}"
        )
    total = sum(seconds for _, seconds, _ in results.values())
    print(f"{'all':10} {'':8} {total:7.0f}s")
    return 0 if all(passed for passed, _, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
