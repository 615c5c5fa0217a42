"""``prepare``: everything that can be known before an accelerator is requested.

Rows are checked before the model is fetched, the model before anything is tokenised; the first
stage that finds a mistake ends the job with all mistakes of its kind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.exit_codes import ExitCode
from finetune_api.job import JobSpec
from finetune_api.names import Layout
from finetune_api.problem import Problem, Refused
from finetune_api.quantity import format_bytes
from finetune_api.reports import DataReport, PrepareReport
from finetune_api.resolved import Choices, Chosen, StageConfig
from finetune_trainer import optimizers
from finetune_trainer.checkpoint.durable import replace
from finetune_trainer.data import batch, cache
from finetune_trainer.data.dataset import read_dataset
from finetune_trainer.data.prepared import prepared_data
from finetune_trainer.errors import StageError

if TYPE_CHECKING:
    from finetune_trainer.memory.estimate import Evaluated

MOST_PROBLEMS = 50


def check(config: StageConfig) -> PrepareReport:
    """Read and check every row; writes nothing, needs no model, raises nothing for bad data."""
    started = time.monotonic()
    problems: Sequence[Problem]
    train = None
    try:
        rows = read_dataset(config)
        scan = rows.train_scan
        train = DataReport(
            rows=scan.rows,
            rows_used=scan.valid,
            rows_dropped=scan.findings.rows,
            duplicates=scan.duplicates,
            sequences=0,
            tokens=0,
            trained_tokens=0,
        )
        problems = rows.warnings
    except Refused as refused:
        problems = refused.problems
    return PrepareReport(
        job_uid=config.job.uid,
        train=train,
        problems=tuple(problems[:MOST_PROBLEMS]),
        seconds=round(time.monotonic() - started, 3),
    )


def run(config: StageConfig) -> PrepareReport:
    """Prepare a job; leaves ``reports/prepare.json`` whatever comes of it.

    Raises ``StageError`` for what a user has to mend, after the report was written.
    """
    started = time.monotonic()
    found: dict[str, Any] = {}
    try:
        _prepare(config, found)
    except Refused as refused:
        code = refused.exit_code if isinstance(refused, StageError) else ExitCode.INVALID_DATA
        _write(config, {**found, "choices": None, "problems": refused.problems}, started)
        raise StageError(code, *refused.problems) from refused
    return _write(config, found, started)


def summary(report: PrepareReport) -> str:
    """Return a finished preparation in one line, for conditions and consoles."""
    train, memory = report.train, report.memory
    if train is None:
        return ""
    share = train.trained_tokens / max(1, train.tokens)
    dropped = f", {train.rows_dropped:,} dropped" if train.rows_dropped else ""
    text = (
        f"{train.rows_used:,} rows, {_short(train.trained_tokens)} trained tokens "
        f"({share:.0%}){dropped}"
    )
    if memory is None or not memory.predicted_bytes:
        return text
    room = f" of {format_bytes(memory.available_bytes)}" if memory.available_bytes else ""
    return f"{text}; needs {format_bytes(memory.predicted_bytes)}{room} a rank"


def _short(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _write(config: StageConfig, found: dict[str, Any], started: float) -> PrepareReport:
    problems = sorted(found.pop("problems", ()), key=lambda problem: problem.severity)
    report = PrepareReport(
        job_uid=config.job.uid,
        problems=tuple(problems[:MOST_PROBLEMS]),
        seconds=round(time.monotonic() - started, 3),
        **found,
    )
    path = Layout(Path(config.mounts.workspace)).prepare_report
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps(report.to_json(), indent=1, ensure_ascii=False).encode() + b"\n")
    return report


def _prepare(config: StageConfig, found: dict[str, Any]) -> None:
    """Do the work, in the order in which mistakes are cheapest to find.

    ``found`` gets the fields of the report as they become known.
    """
    from finetune_trainer import base_weights, fetch, methods, publish

    spec = config.job.spec
    rows = read_dataset(config)
    model = fetch.materialise(config)
    base_weights.check(config)
    unmatched = methods.check_targets(config) or publish.check_output(config)
    if unmatched:
        raise StageError(ExitCode.INVALID_CONFIG, *unmatched)
    data = prepared_data(config, rows, model.digest, model.tokenizer_digest)
    manifest = data.manifest
    train = manifest.train
    found |= {
        "train": train,
        "validation": manifest.validation,
        "disk": data.disk,
        "cached": data.cached,
    }
    limits = batch.limits_of(spec)
    try:
        _check_lengths(config, manifest)
        batches = batch.choose(train.sequences, limits)
        _check_validation(spec, manifest)
        optimizers.schedule(spec.training, batches.total_steps)
    except Refused as refused:
        raise StageError(ExitCode.INVALID_CONFIG, *refused.problems) from refused
    micro, memory_chosen = _memory(config, manifest, batches, found)
    few = batch.few_steps(train.sequences, batches, limits, packing=manifest.packing)
    evaluation = _evaluation_steps(spec, manifest, batches)
    share = batches.global_batch / train.sequences
    found |= {
        "tokens_per_step": round(train.tokens * share),
        "trained_tokens_per_step": round(train.trained_tokens * share),
        "rows_per_step": round(train.rows_used * share, 2),
        "problems": (*found.get("problems", ()), *data.problems, *([few] if few else [])),
        "choices": Choices(
            fingerprint=manifest.fingerprint,
            model_path=model.path_ref,
            model_digest=model.digest,
            tokenizer_digest=model.tokenizer_digest,
            train_sequences=train.sequences,
            validation_sequences=manifest.validation.sequences if manifest.validation else 0,
            packing=manifest.packing,
            global_batch_size=batches.global_batch,
            micro_batch_size=micro,
            micro_batch_chosen=spec.training.micro_batch_size is None,
            steps_per_epoch=batches.steps_per_epoch,
            total_steps=batches.total_steps,
            evaluation_every_steps=evaluation,
            chosen=(*data.chosen, *_batch_chosen(spec, batches, evaluation), *memory_chosen),
        ),
    }


def _check_lengths(config: StageConfig, manifest: cache.PreparedManifest) -> None:
    """Raise ``Refused`` when a document is longer than the model has positions."""
    from finetune_trainer.model import load_model_config

    positions = getattr(
        load_model_config(config).get_text_config(), "max_position_embeddings", None
    )
    reports = [report for report in (manifest.train, manifest.validation) if report]
    longest = min(max(report.longest for report in reports), manifest.max_length)
    if isinstance(positions, int) and longest > positions:
        raise Refused(
            Problem(
                code="longer-than-model",
                message=f"rows of {longest:,} tokens, but the model has {positions:,} positions",
                fix=f"set dataset.maxLength: {positions}",
                field="spec.dataset.maxLength",
            )
        )


def _check_validation(spec: JobSpec, manifest: cache.PreparedManifest) -> None:
    """Raise ``Refused`` when something needs validation rows and there are none."""
    needs = "gate" if spec.evaluation.gate else "earlyStopping"
    if manifest.validation is None and (spec.evaluation.gate or spec.evaluation.early_stopping):
        raise Refused(
            Problem(
                code="no-validation-rows",
                message=f"evaluation.{needs} needs validation rows and there are none",
                fix="set dataset.validation.fraction or dataset.validation.sources",
                field=f"spec.evaluation.{needs}",
            )
        )


def _memory(
    config: StageConfig,
    manifest: cache.PreparedManifest,
    batches: batch.Batches,
    found: dict[str, Any],
) -> tuple[int, tuple[Chosen, ...]]:
    """Return the micro-batch and why; raises ``StageError`` (12) when no step would fit."""
    from finetune_trainer.memory import host, verdict

    longest = min(manifest.train.longest, manifest.max_length)
    length = manifest.max_length if manifest.packing else longest
    evaluated = _evaluated(config, manifest)
    report, micro, chosen = verdict.verdict(
        config, length=length, global_batch_size=batches.global_batch, evaluated=evaluated
    )
    node = host.problem(config)
    found["memory"] = report
    if node is not None:
        found["problems"] = (node,)
        if node.severity == "error":
            no = {"verdict": "DoesNotFit", "message": node.message}
            found["memory"] = report.model_copy(update=no)
    verdict.require(config, report, micro, length=length, evaluated=evaluated, node=node)
    return micro, chosen


def _evaluated(config: StageConfig, manifest: cache.PreparedManifest) -> Evaluated | None:
    """Return what is evaluated at once; None where there is no validation data."""
    from finetune_trainer.memory.estimate import Evaluated

    rows, spec = manifest.validation, config.job.spec
    if rows is None:
        return None
    longest = manifest.max_length if manifest.packing else min(rows.longest, manifest.max_length)
    count = min(rows.sequences, spec.evaluation.max_rows or rows.sequences)
    most = -(-count // spec.resources.world_size)
    return Evaluated(longest, most, spec.evaluation.batch_size)


def _evaluation_steps(
    spec: JobSpec, manifest: cache.PreparedManifest, batches: batch.Batches
) -> int | None:
    if manifest.validation is None:
        return None
    return spec.evaluation.every_steps or max(1, batches.total_steps // 10)


def _batch_chosen(
    spec: JobSpec, batches: batch.Batches, evaluation: int | None
) -> tuple[Chosen, ...]:
    found = []
    if batches.reason:
        found.append(
            Chosen(
                field="training.globalBatchSize",
                value=str(batches.global_batch),
                reason=batches.reason,
            )
        )
    if evaluation is not None and spec.evaluation.every_steps is None:
        found.append(
            Chosen(
                field="evaluation.everySteps",
                value=str(evaluation),
                reason="ten times over the job",
            )
        )
    return tuple(found)
