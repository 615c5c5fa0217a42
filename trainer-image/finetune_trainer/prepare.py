"""``prepare``: everything that can be known before an accelerator is requested.

Rows are checked before the model is fetched, the model before anything is tokenised; the first
stage that finds a mistake ends the job with all mistakes of its kind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.document import digest_of
from finetune_api.exit_codes import ExitCode
from finetune_api.job import JobSpec
from finetune_api.job.dataset import DataSource
from finetune_api.names import Layout
from finetune_api.problem import Problem, Refused
from finetune_api.reports import DataReport, MemoryReport, PrepareReport
from finetune_api.resolved import Choices, Chosen, StageConfig
from finetune_trainer.checkpoint.durable import replace
from finetune_trainer.data import batch, build, cache, split
from finetune_trainer.data import check as row_checks
from finetune_trainer.data.encode import Encoder
from finetune_trainer.data.packing_proof import Proof, prove
from finetune_trainer.data.read import DataFile, locate
from finetune_trainer.data.template import load_template
from finetune_trainer.data.ticker import Ticker
from finetune_trainer.errors import StageError

CODE_VERSION = 1
"""Raised whenever the same rows and settings would give other tokens, masks or sequences."""
MOST_PROBLEMS = 50


@dataclass(frozen=True)
class Rows:
    """The dataset of a job, every row read and checked once."""

    train: tuple[row_checks.Source, ...]
    train_scan: row_checks.Scan
    validation: tuple[row_checks.Source, ...]
    validation_scan: row_checks.Scan | None
    warnings: tuple[Problem, ...]

    @property
    def files(self) -> tuple[DataFile, ...]:
        """All files, training first."""
        return tuple(file for source in (*self.train, *self.validation) for file in source.files)

    @property
    def stamps(self) -> list[tuple[int, int]]:
        """Size and time of each file, to see that none changes between two passes."""
        found = [file.path.stat() for file in self.files]
        return [(stat.st_size, stat.st_mtime_ns) for stat in found]


@dataclass(frozen=True)
class Prepared:
    """What is on disk, and what was said on the way there."""

    manifest: cache.PreparedManifest
    cached: bool
    problems: tuple[Problem, ...]
    chosen: tuple[Chosen, ...]


def check(config: StageConfig) -> PrepareReport:
    """Read and check every row; writes nothing, needs no model, raises nothing for bad data."""
    started = time.monotonic()
    problems: Sequence[Problem]
    train = None
    try:
        rows = _rows(config)
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
    found = PrepareReport(job_uid=config.job.uid)
    try:
        found = _prepared(config)
    except Refused as refused:
        code = refused.exit_code if isinstance(refused, StageError) else ExitCode.INVALID_DATA
        problems = tuple(refused.problems[:MOST_PROBLEMS])
        _write(config, found.model_copy(update={"problems": problems}), started)
        raise StageError(code, *refused.problems) from refused
    return _write(config, found, started)


def _write(config: StageConfig, report: PrepareReport, started: float) -> PrepareReport:
    report = report.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
    path = Layout(Path(config.mounts.workspace)).prepare_report
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps(report.to_json(), indent=1, ensure_ascii=False).encode() + b"\n")
    return report


def _prepared(config: StageConfig) -> PrepareReport:
    """Do the work, in the order in which mistakes are cheapest to find."""
    from finetune_trainer import fetch, methods

    rows = _rows(config)
    model = fetch.materialise(config)
    unmatched = methods.check_targets(config)
    if unmatched:
        raise StageError(ExitCode.INVALID_CONFIG, *unmatched)
    data = _data(config, rows, model.digest, model.tokenizer_digest)
    manifest = data.manifest
    limits = _limits(config.job.spec)
    try:
        _check_lengths(config, manifest)
        batches = batch.choose(manifest.train.sequences, limits)
        _check_validation(config.job.spec, manifest)
    except Refused as refused:
        raise StageError(ExitCode.INVALID_CONFIG, *refused.problems) from refused
    few = batch.few_steps(manifest.train.sequences, batches, limits, packing=manifest.packing)
    memory, micro, memory_chosen = _memory(config, manifest, batches)
    evaluation = _evaluation_steps(config.job.spec, manifest, batches)
    choices = Choices(
        fingerprint=manifest.fingerprint,
        model_path=model.path_ref,
        model_digest=model.digest,
        tokenizer_digest=model.tokenizer_digest,
        train_sequences=manifest.train.sequences,
        validation_sequences=manifest.validation.sequences if manifest.validation else 0,
        packing=manifest.packing,
        global_batch_size=batches.global_batch,
        micro_batch_size=micro,
        micro_batch_chosen=config.job.spec.training.micro_batch_size is None,
        steps_per_epoch=batches.steps_per_epoch,
        total_steps=batches.total_steps,
        evaluation_every_steps=evaluation,
        chosen=(
            *data.chosen,
            *_batch_chosen(config.job.spec, batches, evaluation),
            *memory_chosen,
        ),
    )
    train = manifest.train
    share = batches.global_batch / train.sequences
    problems = sorted(
        (*data.problems, *([few] if few else [])), key=lambda problem: problem.severity
    )
    return PrepareReport(
        job_uid=config.job.uid,
        choices=choices,
        train=train,
        validation=manifest.validation,
        memory=memory,
        tokens_per_step=round(train.tokens * share),
        trained_tokens_per_step=round(train.trained_tokens * share),
        rows_per_step=round(train.rows_used * share, 2),
        problems=tuple(problems[:MOST_PROBLEMS]),
        cached=data.cached,
    )


# --- rows -----------------------------------------------------------------------------------------


def _rows(config: StageConfig) -> Rows:
    """Find every file and check every row; raises ``Refused`` with all mistakes of one split."""
    dataset = config.job.spec.dataset
    volumes = config.mounts.volumes
    held = dataset.validation.sources if dataset.validation else None
    train = _sources(dataset.train, volumes, "spec.dataset.train")
    validation = _sources(held or [], volumes, "spec.dataset.validation.sources")
    settings = _settings(config.job.spec)
    with Ticker("checking") as ticker:
        train_scan = row_checks.scan(train, settings, lambda _: ticker.tick())
        validation_scan = (
            row_checks.scan(validation, settings, lambda _: ticker.tick()) if validation else None
        )
    warnings = _judged(config, train_scan)
    if validation_scan is not None:
        warnings += _judged(config, validation_scan)
    if train_scan.duplicates > 0.1 * train_scan.valid:
        warnings.append(
            Problem(
                code="duplicate-rows",
                message=f"{train_scan.duplicates:,} of {train_scan.valid:,} rows are copies of "
                "an earlier one",
                fix="remove them, unless they are meant to count more",
                field="spec.dataset.train",
                severity="warning",
            )
        )
    return Rows(train, train_scan, validation, validation_scan, tuple(warnings))


def _judged(config: StageConfig, scan: row_checks.Scan) -> list[Problem]:
    dataset = config.job.spec.dataset
    return row_checks.verdict(scan, dataset.invalid_rows, dataset.max_invalid_fraction)


def _settings(spec: JobSpec) -> row_checks.Settings:
    dataset = spec.dataset
    return row_checks.Settings(
        dataset.loss_on, dataset.alpaca_prompt == "Stanford", dataset.system_prompt
    )


def _sources(
    specs: Sequence[DataSource], volumes: dict[str, str], field: str
) -> tuple[row_checks.Source, ...]:
    """Locate every source; files of one name are told apart by their URI."""
    found: list[row_checks.Source] = []
    problems: list[Problem] = []
    for index, spec in enumerate(specs):
        try:
            files = locate(spec.uri, volumes, f"{field}[{index}].uri")
            found.append(row_checks.Source(f"{field}[{index}]", spec, files))
        except Refused as refused:
            problems += refused.problems
    if problems:
        raise Refused(*problems)
    names = [file.shown for source in found for file in source.files]
    return tuple(
        row_checks.Source(
            source.field,
            source.spec,
            tuple(
                file
                if names.count(file.shown) == 1
                else DataFile(file.path, _full_name(source.spec.uri, file.shown))
                for file in source.files
            ),
        )
        for source in found
    )


def _full_name(uri: str, shown: str) -> str:
    return uri if uri.endswith(f"/{shown}") else f"{uri.rstrip('/')}/{shown}"


# --- prepared data --------------------------------------------------------------------------------


def _data(config: StageConfig, rows: Rows, model_digest: str, tokenizer_digest: str) -> Prepared:
    """Return prepared data of this fingerprint: what is there already, or made now."""
    from finetune_trainer.hashing import hashes_of
    from finetune_trainer.model import load_tokenizer

    layout = Layout(Path(config.mounts.workspace))
    stamps = rows.stamps
    hashes = hashes_of([file.path for file in rows.files], layout.reports / "data-hashes.json")
    try:
        encoder, template_chosen = _encoder(config, rows, load_tokenizer(config))
    except Refused as refused:
        raise StageError(ExitCode.INVALID_CONFIG, *refused.problems) from refused
    fingerprint = _fingerprint(config, rows, hashes, encoder, model_digest, tokenizer_digest)
    held = _held_out(config.job.spec, rows)
    chosen = (*_source_chosen(rows), *template_chosen, *_held_chosen(config.job.spec, held))
    final = cache.folder_of(layout.prepared, fingerprint)

    def waiting() -> None:
        import sys

        sys.stderr.write(f"another process prepares {final.name}; waiting for it\n")

    with cache.locked(layout.prepared, fingerprint, waiting):
        manifest = cache.verified(final, fingerprint)
        cached = manifest is not None
        if manifest is None:
            plan = build.Plan(
                encoder=encoder,
                settings=_settings(config.job.spec),
                seed=config.job.spec.training.seed,
                sequential=config.job.spec.training.sampling == "Sequential",
                held_out=held.rows,
                max_validation_rows=config.job.spec.evaluation.max_rows,
            )
            with cache.staged(layout.prepared, fingerprint) as folder:
                manifest = _build(config, rows, plan, folder, fingerprint)
                if rows.stamps != stamps:
                    raise Refused(_changed(config))
                cache.commit(folder, final, manifest)
    return Prepared(
        manifest,
        cached,
        (*rows.warnings, *manifest.warnings),
        (*chosen, *manifest.chosen),
    )


def _changed(config: StageConfig) -> Problem:
    return Problem(
        code="data-changed",
        message="a data file changed while it was read",
        fix="start again once nothing writes to it",
        field="spec.dataset.train",
    )


def _encoder(config: StageConfig, rows: Rows, tokenizer: Any) -> tuple[Encoder, tuple[Chosen, ...]]:
    """Return the encoder of the job; raises ``Refused`` for its template or tokenizer."""
    dataset = config.job.spec.dataset
    if not tokenizer.is_fast:
        raise Refused(
            Problem(
                code="tokenizer-without-offsets",
                message=f"{type(tokenizer).__name__} does not say where its tokens stand in the "
                "text, so masks cannot be exact",
                fix="use a model with a tokenizer.json",
                field="spec.model.tokenizer",
            )
        )
    scans = [scan for scan in (rows.train_scan, rows.validation_scan) if scan]
    readers = [reader for scan in scans for reader in scan.readers if reader]
    plain = all(reader.stanford and reader.format.name == "Alpaca" for reader in readers)
    template = None if plain else load_template(dataset.chat_template, tokenizer)
    encoder = Encoder(
        tokenizer=tokenizer,
        template=template,
        max_length=dataset.max_length,
        overlong=dataset.overlong,
        unroll=dataset.unroll_turns,
    )
    if template is None or dataset.chat_template is not None:
        return encoder, ()
    reason = "the tokenizer has it"
    return encoder, (Chosen(field="dataset.chatTemplate", value=template.origin, reason=reason),)


def _fingerprint(
    config: StageConfig,
    rows: Rows,
    hashes: dict[Path, str],
    encoder: Encoder,
    model_digest: str,
    tokenizer_digest: str,
) -> str:
    """Return the digest of everything that shapes the prepared data."""
    spec = config.job.spec
    limits = _limits(spec)
    packing: dict[str, Any] = {"setting": spec.dataset.packing}
    if spec.dataset.packing is None:  # then these decide
        packing |= {
            "model": model_digest,
            "method": spec.method.to_json(),
            "attention": spec.model.attention,
            "limits": [
                limits.epochs,
                limits.max_steps,
                limits.global_batch,
                limits.unit,
            ],
        }
    return digest_of(
        {
            "code": CODE_VERSION,
            "sources": [
                {
                    "role": source.field,
                    "files": [hashes[file.path] for file in source.files],
                    "format": source.spec.format,
                    "columns": source.spec.columns,
                    "weight": source.spec.weight,
                    "maxRows": source.spec.max_rows,
                }
                for source in (*rows.train, *rows.validation)
            ],
            "dataset": spec.dataset.model_copy(
                update={"train": [], "packing": None, "chat_template": None}
            ).to_json(),
            "template": encoder.template.text if encoder.template else None,
            "tokenizer": tokenizer_digest,
            "packing": packing,
            "maxValidationRows": spec.evaluation.max_rows,
            "sequential": spec.training.sampling == "Sequential",
            "seed": spec.training.seed,
        }
    )


def _held_out(spec: JobSpec, rows: Rows) -> split.Held:
    if rows.validation:
        return split.Held(0, "dataset.validation.sources")
    fraction = spec.dataset.validation.fraction if spec.dataset.validation else None
    held = split.held_out(rows.train_scan.valid, fraction)
    most = spec.evaluation.max_rows
    if most is not None and held.rows > most:
        return split.Held(most, f"evaluation.maxRows {most}")
    return held


def _build(
    config: StageConfig, rows: Rows, plan: build.Plan, folder: Path, fingerprint: str
) -> cache.PreparedManifest:
    """Tokenise, decide on packing and write both splits into an empty folder."""
    spec = config.job.spec
    proof = prove(config) if spec.dataset.packing else None
    if proof is not None and not proof.holds:
        raise StageError(ExitCode.INVALID_CONFIG, _not_proved(proof))
    held = (rows.validation, rows.validation_scan) if rows.validation_scan else None
    train, validation, warnings = build.write_rows(
        folder, plan, (rows.train, rows.train_scan), held
    )
    try:
        _judge_encoded(config, rows, train)
        items = train.items()
        bins = build.sequences(train, items, plan, packing=spec.dataset.packing is not False)
        chosen: tuple[Chosen, ...] = ()
        packing = bool(spec.dataset.packing)
        if spec.dataset.packing is None:
            packing, reason = _packing(config, len(bins))
            chosen = (
                Chosen(field="dataset.packing", value=str(packing).lower(), reason=reason[:512]),
            )
            if not packing:
                bins = build.sequences(train, items, plan, packing=False)
        files, train_report = train.finish(bins, items, spec.dataset.max_length, packing=packing)
        validation_report = None
        if validation.rows_used:
            items = validation.items()
            bins = build.sequences(validation, items, plan, packing=packing)
            more, validation_report = validation.finish(
                bins, items, spec.dataset.max_length, packing=packing
            )
            files += more
    finally:
        train.writer.abandon()
        validation.writer.abandon()
    scan = rows.train_scan
    return cache.PreparedManifest(
        fingerprint=fingerprint,
        packing=packing,
        max_length=spec.dataset.max_length,
        train=train_report.model_copy(
            update={
                "rows": train_report.rows + scan.findings.rows,
                "rows_dropped": train_report.rows_dropped + scan.findings.rows,
                "duplicates": scan.duplicates,
            }
        ),
        validation=validation_report,
        warnings=tuple(warnings[:MOST_PROBLEMS]),
        chosen=chosen,
        files=tuple(files),
    )


def _judge_encoded(config: StageConfig, rows: Rows, train: build.Split) -> None:
    """Raise ``Refused`` for rows that only tokens show to be unusable."""
    for scan in (rows.train_scan, rows.validation_scan):
        if scan is None:
            continue
        _judged(config, scan)
        too_long = [p for p in scan.findings.problems() if p.code == "row-too-long"]
        if too_long:  # dataset.overlong: Fail means it, whatever invalidRows says
            raise Refused(*too_long)
    if not train.rows_used:
        raise Refused(
            Problem(
                code="no-rows",
                message=f"no row is left to train on; {train.rows_dropped:,} are longer than "
                f"dataset.maxLength {config.job.spec.dataset.max_length}",
                fix="raise dataset.maxLength or set dataset.overlong: Truncate",
                field="spec.dataset.overlong",
            )
        )


def _packing(config: StageConfig, packed_sequences: int) -> tuple[bool, str]:
    """Decide on packing where the job does not."""
    limits = _limits(config.job.spec)
    if not batch.packing_pays(packed_sequences, limits):
        left = (
            f"packed, {packed_sequences:,} sequences would leave fewer than {limits.enough} steps"
        )
        return False, left
    proof = prove(config)
    return proof.holds, proof.reason


def _not_proved(proof: Proof) -> Problem:
    return Problem(
        code="packing-not-proved",
        message=f"packing is not safe for this model: {proof.reason}"[:1024],
        fix="set dataset.packing: false",
        field="spec.dataset.packing",
    )


# --- choices --------------------------------------------------------------------------------------


def _limits(spec: JobSpec) -> batch.Limits:
    training = spec.training
    return batch.Limits(
        epochs=training.epochs,
        max_steps=training.max_steps,
        global_batch=training.global_batch_size,
        micro_batch=training.micro_batch_size,
        world_size=spec.resources.world_size,
    )


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
    config: StageConfig, manifest: cache.PreparedManifest, batches: batch.Batches
) -> tuple[MemoryReport, int, tuple[Chosen, ...]]:
    micro = config.job.spec.training.micro_batch_size or 1
    return MemoryReport(verdict="Unknown"), micro, ()


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


def _source_chosen(rows: Rows) -> tuple[Chosen, ...]:
    found = []
    scans = ((rows.train, rows.train_scan), (rows.validation, rows.validation_scan))
    for sources, scan in scans:
        for source, reader in zip(sources, scan.readers if scan else (), strict=False):
            if reader and reader.detected:
                columns = ", ".join(reader.format.required)
                found.append(
                    Chosen(
                        field=f"{source.field.removeprefix('spec.')}.format",
                        value=reader.format.name,
                        reason=f"the first row has {columns}",
                    )
                )
    return tuple(found)


def _held_chosen(spec: JobSpec, held: split.Held) -> tuple[Chosen, ...]:
    if spec.dataset.validation is not None:
        return ()
    value = f"{held.rows} rows" if held.rows else "none"
    return (Chosen(field="dataset.validation", value=value, reason=held.reason),)
