"""``make bench B=packing``: how full packed sequences are, and what packing costs.

Lengths are log-normal around 90 tokens, as Alpaca's are. Each size runs in a process of its own,
the median of five runs is printed, and memory is the peak of that process above its start.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

MEDIAN_TOKENS = 90
SPREAD = 0.75
RUNS = 5
SIZES = (100_000, 1_000_000)
CAPACITIES = (2048, 512)


def lengths_like_alpaca(rows: int, capacity: int) -> np.ndarray:
    """Return token counts of so many rows, none longer than a sequence."""
    generator = np.random.Generator(np.random.PCG64(0))
    drawn = generator.lognormal(np.log(MEDIAN_TOKENS), SPREAD, rows)
    return np.clip(drawn, 8, capacity).astype(np.int32)


def peak_bytes() -> int:
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(capacity: int, rows: int) -> dict[str, float]:
    """Pack once a run; return efficiency, CPU seconds and memory."""
    from finetune_trainer.data.pack import pack

    lengths = lengths_like_alpaca(rows, capacity)
    pack(lengths[:1000], capacity, 0)
    before = peak_bytes()
    seconds = []
    for seed in range(RUNS):
        started = time.process_time()
        bins = pack(lengths, capacity, seed)
        seconds.append(time.process_time() - started)
    return {
        "sequences": len(bins),
        "efficiency": float(lengths.sum() / (len(bins) * capacity)),
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "bytes": peak_bytes() - before,
        "process": peak_bytes(),
    }


def main() -> None:
    """Print the table."""
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}")
    print("maxLength       rows  sequences  efficiency  CPU s   (least-most)    added    process")
    for capacity in CAPACITIES:
        found = {}
        for rows in SIZES:
            command = [sys.executable, __file__, str(capacity), str(rows)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[rows] = line = json.loads(out)
            print(
                f"{capacity:9d} {rows:10,d} {line['sequences']:10,d} {line['efficiency']:11.5f}"
                f"  {line['seconds']:7.3f} ({line['least']:.3f}-{line['most']:.3f})"
                f" {line['bytes'] / 2**20:6.0f} MiB {line['process'] / 2**20:6.0f} MiB"
            )
        small, large = SIZES
        ratio = found[large]["seconds"] / found[small]["seconds"] / (large / small)
        print(f"{'':9s} {large // small} times the rows take {ratio:.2f} x linear time")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
    else:
        main()
