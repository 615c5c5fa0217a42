"""Our trainer and TRL's SFTTrainer on the same tokens, in the same order, from the same weights."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune_api.document import digest_of
from finetune_api.names import Layout
from finetune_api.reports import DataReport
from finetune_api.resolved import Attempt, Choices
from finetune_trainer.data import cache
from harness.stage_config import make_config, write_config

Row = dict[str, list[int]]
DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True)
class Comparison:
    """What both trainers are told."""

    model: Path
    rows: tuple[Row, ...]
    """``input_ids``, ``labels`` (-100 where nothing is learnt) and ``lengths`` of the documents."""
    packed: bool
    steps: int
    world_size: int = 2
    accumulation: int = 4
    micro_batch: int = 1
    learning_rate: float = 1e-3
    lora: dict[str, int] | None = None
    logging_steps: int = 1


@dataclass(frozen=True)
class Run:
    """What a trainer logged, and the seconds between its first and its last log line."""

    logs: list[dict[str, float]]
    seconds: float


def random_rows(count: int, *, documents: int, longest: int, seed: int = 1) -> tuple[Row, ...]:
    """Return rows with uneven lengths and uneven numbers of trained tokens."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        lengths = [draw.randint(5, longest) for _ in range(documents)]
        ids = [draw.randrange(3, 300) for _ in range(sum(lengths))]
        share = draw.choice((0.1, 0.5, 0.9))
        labels = [token if draw.random() < share else -100 for token in ids]
        labels[-1] = ids[-1]
        rows.append({"input_ids": ids, "labels": labels, "lengths": lengths})
    return tuple(rows)


def spans_of(labels: list[int]) -> list[tuple[int, int]]:
    """Return the half-open ranges of labels that are not -100."""
    spans: list[tuple[int, int]] = []
    for index, label in enumerate(labels):
        if label == -100:
            continue
        if spans and spans[-1][1] == index:
            spans[-1] = (spans[-1][0], index + 1)
        else:
            spans.append((index, index + 1))
    return spans


def run_ours(root: Path, comparison: Comparison) -> Run:
    """Train with ``finetune-trainer train`` on a prepared folder that holds the rows."""
    method: dict[str, Any] = {"lora": None, "full": {}}
    if comparison.lora:
        method = {
            "lora": {"r": comparison.lora["r"], "alpha": comparison.lora["alpha"], "dropout": 0}
        }
    base = make_config(root, "train")
    models = Path(base.mounts.volumes["models"])
    (models / "tiny").symlink_to(comparison.model)
    config = make_config(
        root,
        "train",
        {
            "method": method,
            "dataset": {"packing": comparison.packed},
            "training": {
                "learningRate": comparison.learning_rate,
                "lrScheduler": "constant",
                "warmupSteps": 0,
                "sampling": "Sequential",
                "loggingSteps": comparison.logging_steps,
                "microBatchSize": comparison.micro_batch,
                "globalBatchSize": _global_batch(comparison),
            },
            "resources": {"processesPerNode": comparison.world_size},
        },
        choices=_prepare(root, comparison),
        attempt=Attempt(
            number=1,
            nodes=1,
            processes_per_node=comparison.world_size,
            micro_batch_size=comparison.micro_batch,
        ),
    )
    file = write_config(config, root / "job.json")
    command = [sys.executable, "-m", "finetune_trainer.main", "train", "--config", str(file)]
    first, last = _timed(command, root / "ours.log", '"event": "progress"')
    metrics = Layout(Path(config.mounts.workspace)).metrics.read_text().splitlines()
    logs = [line for line in map(json.loads, metrics) if "loss" in line]
    return Run([{"loss": x["loss"], "norm": x["gradientNorm"]} for x in logs], last - first)


def run_peer(root: Path, comparison: Comparison) -> Run:
    """Train with TRL's SFTTrainer, one process a rank."""
    root.mkdir(parents=True, exist_ok=True)
    rows = root / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in comparison.rows))
    job = {
        "model": str(comparison.model),
        "rows": str(rows),
        "packed": comparison.packed,
        "micro_batch_size": comparison.micro_batch,
        "accumulation": comparison.accumulation,
        "steps": comparison.steps,
        "learning_rate": comparison.learning_rate,
        "logging_steps": comparison.logging_steps,
        "lora": comparison.lora,
        "out": str(root / "peer.json"),
    }
    (root / "peer-job.json").write_text(json.dumps(job))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(comparison.world_size)),
        *(str(Path(__file__).with_name("trl_peer.py")), str(root / "peer-job.json")),
    ]
    first, last = _timed(command, root / "peer.log", "'loss'")
    logs = json.loads((root / "peer.json").read_text())
    return Run([{"loss": x["loss"], "norm": x["grad_norm"]} for x in logs], last - first)


def tokens_between_logs(comparison: Comparison) -> int:
    """Return the tokens of all steps after the first."""
    batch = _global_batch(comparison)
    rows = comparison.rows[batch : batch * comparison.steps]
    return sum(len(row["input_ids"]) for row in rows)


def _global_batch(comparison: Comparison) -> int:
    return comparison.world_size * comparison.accumulation * comparison.micro_batch


def _prepare(root: Path, comparison: Comparison) -> Choices:
    """Commit the rows as prepared data; a row's documents become one sequence."""
    fingerprint = digest_of({"rows": list(comparison.rows)})
    prepared = root / "workspace" / "prepared"
    prepared.mkdir(parents=True, exist_ok=True)
    with cache.staged(prepared, fingerprint) as folder:
        writer = cache.SplitWriter(folder / "train")
        ends, total = [], 0
        for row in comparison.rows:
            start = 0
            for length in row["lengths"]:
                end = start + length
                writer.add(row["input_ids"][start:end], spans_of(row["labels"][start:end]))
                start, total = end, total + 1
            ends.append(total)
        files = writer.finish(np.arange(total), np.array(ends))
        tokens = sum(len(row["input_ids"]) for row in comparison.rows)
        report = DataReport(
            rows=total, rows_used=total, sequences=len(ends), tokens=tokens, trained_tokens=tokens
        )
        cache.commit(
            folder,
            cache.folder_of(prepared, fingerprint),
            cache.PreparedManifest(
                fingerprint=fingerprint,
                packing=comparison.packed,
                max_length=2048,
                train=report,
                files=tuple(files),
            ),
        )
    per_epoch = len(comparison.rows) // _global_batch(comparison)
    return Choices(
        fingerprint=fingerprint,
        model_path="pvc://models/tiny",
        model_digest=DIGEST,
        tokenizer_digest=DIGEST,
        train_sequences=len(comparison.rows),
        packing=comparison.packed,
        global_batch_size=_global_batch(comparison),
        micro_batch_size=comparison.micro_batch,
        micro_batch_chosen=False,
        steps_per_epoch=per_epoch,
        total_steps=comparison.steps,
    )


def _timed(command: list[str], log: Path, mark: str) -> tuple[float, float]:
    """Run a command to its end; return when its first and last line with ``mark`` came out."""
    times: list[float] = []
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        assert child.stdout is not None
        for line in child.stdout:
            if mark in line:
                times.append(time.perf_counter())
            out.write(line)
        code = child.wait()
    if code or not times:
        raise RuntimeError(f"{command} ended with {code}:\n{log.read_text()[-4000:]}")
    return times[0], times[-1]
