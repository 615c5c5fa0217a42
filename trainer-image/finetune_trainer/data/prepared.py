"""Prepared data of a job: found by its fingerprint, or made, verified and committed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_api.document import digest_of
from finetune_api.exit_codes import ExitCode
from finetune_api.job import JobSpec
from finetune_api.names import Layout
from finetune_api.problem import Problem, Refused
from finetune_api.reports import DataReport, DiskReport
from finetune_api.resolved import Chosen, StageConfig
from finetune_trainer.data import batch, build, cache, split
from finetune_trainer.data.check import Scan
from finetune_trainer.data.dataset import Rows, formats_chosen, judged, settings_of
from finetune_trainer.data.day import day_of
from finetune_trainer.data.encode import Encoder
from finetune_trainer.data.packing_proof import Proof, prove
from finetune_trainer.data.template import load_template
from finetune_trainer.errors import StageError

CODE_VERSION = 1
"""Raised whenever the same rows and settings would give other tokens, masks or sequences."""
MOST_WARNINGS = 50


@dataclass(frozen=True)
class Prepared:
    """What is on disk, and what was said on the way there."""

    manifest: cache.PreparedManifest
    disk: DiskReport
    cached: bool
    problems: tuple[Problem, ...]
    chosen: tuple[Chosen, ...]


def prepared_data(
    config: StageConfig, rows: Rows, model_digest: str, tokenizer_digest: str
) -> Prepared:
    """Return prepared data of this fingerprint: what is there already, or made now."""
    from finetune_trainer.hashing import hashes_of
    from finetune_trainer.model import load_tokenizer

    layout = Layout(Path(config.mounts.workspace))
    with _unchanged(rows):
        hashes = hashes_of([file.path for file in rows.files], layout.reports / "data-hashes.json")
    try:
        encoder, template_chosen = _encoder(config, rows, load_tokenizer(config))
    except Refused as refused:
        raise StageError(ExitCode.INVALID_CONFIG, *refused.problems) from refused
    fingerprint = _fingerprint(config, rows, hashes, encoder, model_digest, tokenizer_digest)
    held = _held_out(config.job.spec, rows)
    chosen = (*formats_chosen(rows), *template_chosen, *_held_chosen(config.job.spec, held))
    final = cache.folder_of(layout.prepared, fingerprint)

    def waiting() -> None:
        sys.stderr.write(f"another process prepares {final.name}; waiting for it\n")

    with cache.locked(layout.prepared, fingerprint, waiting):
        manifest = cache.verified(final, fingerprint)
        cached = manifest is not None
        room = _room(config, rows, cached=cached)
        if manifest is None:
            plan = build.Plan(
                encoder=encoder,
                settings=settings_of(config.job.spec),
                seed=config.job.spec.training.seed,
                sequential=config.job.spec.training.sampling == "Sequential",
                held_out=held.rows,
                max_validation_rows=config.job.spec.evaluation.max_rows,
            )
            with cache.staged(layout.prepared, fingerprint) as folder:
                with _unchanged(rows):
                    manifest = _build(config, rows, plan, folder, fingerprint)
                cache.commit(folder, final, manifest)
    return Prepared(
        manifest,
        room,
        cached,
        (*rows.warnings, *_none_held_out(config.job.spec, held, manifest), *manifest.warnings),
        (*chosen, *manifest.chosen),
    )


def _room(config: StageConfig, rows: Rows, *, cached: bool) -> DiskReport:
    """Return the verdict on the disk; raises ``StageError`` (14) before anything is written."""
    from finetune_trainer.memory import disk

    report = disk.verdict(config, prepared_bytes=0 if cached else rows.prepared_bytes)
    disk.require(config, report)
    return report


@contextmanager
def _unchanged(rows: Rows) -> Iterator[None]:
    """Raise ``Refused`` when a file is not the one that was checked, whatever came of that.

    Rows are told apart by their number: of changed files other rows would be held out and dropped.
    """
    changed = Problem(
        code="data-changed",
        message="a data file changed after its rows were checked",
        fix="start again once nothing writes to it",
        field="spec.dataset.train",
    )
    try:
        yield
    except Exception as error:
        if rows.changed:
            raise Refused(changed) from error
        raise
    if rows.changed:
        raise Refused(changed)


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
    if template is not None and template.dated:
        reports = Layout(Path(config.mounts.workspace)).reports
        template = replace(template, day=day_of(reports / "day.json"))
    encoder = Encoder(
        tokenizer=tokenizer,
        template=template,
        max_length=dataset.max_length,
        overlong=dataset.overlong,
        unroll=dataset.unroll_turns,
    )
    if template is None or dataset.chat_template is not None:
        return encoder, ()
    reason = f"the tokenizer has it{f'; its today is {template.day}' if template.day else ''}"
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
    limits = batch.limits_of(spec)
    packing: dict[str, Any] = {"setting": spec.dataset.packing}
    if spec.dataset.packing is None:  # then these decide
        packing |= {
            "model": model_digest,
            "method": spec.method.to_json(),
            "attention": spec.model.attention,
            "limits": [
                float(limits.epochs),  # 3 and 3.0 are one job
                limits.max_steps,
                limits.global_batch,
                limits.unit,
            ],
        }
    template = encoder.template
    dated = {"day": template.day.isoformat()} if template and template.day else {}
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
            "template": template.text if template else None,
            **dated,
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
        else:
            shutil.rmtree(folder / "validation")
    finally:
        train.writer.abandon()
        validation.writer.abandon()
    if validation_report is not None and rows.validation_scan is not None:
        validation_report = _with_invalid(validation_report, rows.validation_scan)
    return cache.PreparedManifest(
        fingerprint=fingerprint,
        packing=packing,
        max_length=spec.dataset.max_length,
        train=_with_invalid(train_report, rows.train_scan),
        validation=validation_report,
        warnings=tuple(warnings[:MOST_WARNINGS]),
        chosen=chosen,
        files=tuple(files),
    )


def _with_invalid(report: DataReport, scan: Scan) -> DataReport:
    """Return a report that counts the rows that could not be used, too."""
    invalid = scan.findings.rows
    return report.model_copy(
        update={
            "rows": report.rows + invalid,
            "rows_dropped": report.rows_dropped + invalid,
            "duplicates": scan.duplicates,
        }
    )


def _judge_encoded(config: StageConfig, rows: Rows, train: build.Split) -> None:
    """Raise ``Refused`` for rows that only tokens show to be unusable."""
    for scan in (rows.train_scan, rows.validation_scan):
        if scan is None:
            continue
        judged(config, scan)
        too_long = [p for p in scan.findings.problems() if p.code == "row-too-long"]
        if too_long:  # dataset.overlong: Fail means it, whatever invalidRows says
            raise Refused(*too_long)
    if not train.rows_used:
        raise Refused(_nothing_to_train(config, train))


def _nothing_to_train(config: StageConfig, train: build.Split) -> Problem:
    left_out = train.rows - train.rows_dropped
    if left_out:
        return Problem(
            code="no-rows",
            message=f"no row is left to train on; weights leave out {left_out:,}",
            fix="raise the weight of a source",
            field="spec.dataset.train",
        )
    return Problem(
        code="no-rows",
        message=f"no row is left to train on; {train.rows_dropped:,} are longer than "
        f"dataset.maxLength {config.job.spec.dataset.max_length}",
        fix="raise dataset.maxLength or set dataset.overlong: Truncate",
        field="spec.dataset.overlong",
    )


def _packing(config: StageConfig, packed_sequences: int) -> tuple[bool, str]:
    """Decide on packing where the job does not."""
    limits = batch.limits_of(config.job.spec)
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


def _none_held_out(
    spec: JobSpec, held: split.Held, manifest: cache.PreparedManifest
) -> tuple[Problem, ...]:
    """Return a warning when rows were to be held out, or were named, and none is there."""
    asked = spec.dataset.validation
    if manifest.validation is not None or (asked is None and not held.rows):
        return ()
    why = f"of {manifest.train.rows:,} rows none is held out; copies of a row stay together"
    if asked is not None and asked.sources:
        why = "no row of dataset.validation.sources can be used"
    return (
        Problem(
            code="nothing-held-out",
            message=f"nothing to evaluate with: {why}",
            fix="raise dataset.validation.fraction, or name more rows in dataset.validation.sources",
            field="spec.dataset.validation",
            severity="warning",
        ),
    )


def _held_chosen(spec: JobSpec, held: split.Held) -> tuple[Chosen, ...]:
    if spec.dataset.validation is not None:
        return ()
    value = f"{held.rows} rows" if held.rows else "none"
    return (Chosen(field="dataset.validation", value=value, reason=held.reason),)
