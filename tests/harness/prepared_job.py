"""A job with prepared data of random tokens, and one rank of it trained in this process."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from finetune_api.names import Layout
from finetune_api.reports import DataReport, Progress
from finetune_api.resolved import Attempt, Choices, StageConfig
from finetune_trainer import launch
from finetune_trainer.data import cache
from harness.stage_config import make_config, merged
from harness.tiny_model import make_tiny_model

FINGERPRINT = "sha256:" + "2" * 64
DIGEST = "sha256:" + "1" * 64
GLOBAL_BATCH = 8


def prepared_job(
    root: Path,
    spec: dict[str, Any] | None = None,
    *,
    ranks: int = 1,
    micro_batch: int = 2,
    sequences: int = 37,
    validation: int = 5,
    packing: bool = True,
    steps: int = 6,
    evaluate_every: int = 3,
    dropout: float = 0.0,
) -> StageConfig:
    """Return the configuration of the first attempt; everything lies below ``root``.

    Sequences have one to three documents when packed, one when not, of 10 to 39 random tokens; the
    tail of each document is trained, so that sequences have uneven numbers of trained tokens.
    """
    config = make_config(
        root, "train", merged({"method": {"lora": {"dropout": dropout}}}, spec or {})
    )
    make_tiny_model(root / "volumes" / "models" / "tiny", dropout=dropout)
    layout = Layout(Path(config.mounts.workspace))
    random = np.random.default_rng(0)
    with cache.staged(layout.prepared, FINGERPRINT) as folder:
        reports, files = {}, []
        for split, count in (("train", sequences), ("validation", validation)):
            if count:
                reports[split] = _write(
                    cache.SplitWriter(folder / split), count, packing, random, files
                )
        manifest = cache.PreparedManifest(
            fingerprint=FINGERPRINT, packing=packing, max_length=128, files=tuple(files), **reports
        )
        cache.commit(folder, cache.folder_of(layout.prepared, FINGERPRINT), manifest)
    choices = Choices(
        fingerprint=FINGERPRINT,
        model_path="pvc://models/tiny",
        model_digest=DIGEST,
        tokenizer_digest=DIGEST,
        train_sequences=sequences,
        validation_sequences=validation,
        packing=packing,
        global_batch_size=GLOBAL_BATCH,
        micro_batch_size=micro_batch,
        micro_batch_chosen=True,
        steps_per_epoch=sequences // GLOBAL_BATCH,
        total_steps=steps,
        evaluation_every_steps=evaluate_every if validation else None,
    )
    return with_attempt(config.model_copy(update={"choices": choices}), 1, ranks, micro_batch)


def with_attempt(config: StageConfig, number: int, ranks: int, micro_batch: int) -> StageConfig:
    """Return the configuration of another attempt."""
    attempt = Attempt(
        number=number, nodes=1, processes_per_node=ranks, micro_batch_size=micro_batch
    )
    return config.model_copy(update={"attempt": attempt})


def _write(
    writer: cache.SplitWriter,
    count: int,
    packing: bool,
    random: np.random.Generator,
    files: list[Any],
) -> DataReport:
    members, ends, tokens, trained = [], [], 0, 0
    for _ in range(count):
        for _ in range(int(random.integers(1, 4)) if packing else 1):
            length = int(random.integers(10, 40))
            start = int(random.integers(1, length - 4))
            members.append(writer.add(random.integers(3, 300, length), [(start, length)]))
            tokens, trained = tokens + length, trained + length - start
        ends.append(len(members))
    files += writer.finish(np.array(members), np.array(ends))
    return DataReport(
        rows=count, rows_used=count, sequences=count, tokens=tokens, trained_tokens=trained
    )


def lines(config: StageConfig) -> list[dict[str, Any]]:
    """Return the metric lines that a run left."""
    path = Layout(Path(config.mounts.workspace)).metrics
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def values(config: StageConfig, name: str) -> dict[int, Any]:
    """Return one metric by step."""
    return {line["step"]: line[name] for line in lines(config) if name in line}


def progress(config: StageConfig) -> Progress:
    """Return the newest progress that a run left."""
    path = Layout(Path(config.mounts.workspace)).progress
    return Progress.model_validate_json(path.read_bytes())


@dataclass
class Outcome:
    """How one rank in this process ended."""

    code: int
    message: str
    problems: tuple[Any, ...]
    facts: dict[str, Any] = field(default_factory=dict)


def train_here(config: StageConfig, scratch: Path, *, listener: Any = None) -> Outcome:
    """Train one rank in this process, with the environment that a rank would have."""
    from finetune_trainer import errors
    from finetune_trainer.facts import Facts
    from finetune_trainer.listener import Listener
    from finetune_trainer.train import train

    facts = Facts()
    scratch.mkdir(parents=True, exist_ok=True)
    environment = {**launch.settings(config, 1), "FINETUNE_TRACE_SAMPLES": "1"}
    with mock.patch.dict(os.environ, environment):
        try:
            ending = train(config, listener or Listener(), facts, scratch, scratch / "rank.log")
        except BaseException as error:
            errors.log_traceback(error, scratch / "rank.log")
            ending = errors.ending_of(error)
            if ending.exit_code == 1:
                raise
    return Outcome(ending.exit_code, ending.message, ending.problems, facts.values)
