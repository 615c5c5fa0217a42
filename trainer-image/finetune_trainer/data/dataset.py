"""The dataset of a job: every file found, every row read and checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.job import JobSpec
from finetune_api.job.dataset import DataSource
from finetune_api.problem import Problem, Refused
from finetune_api.resolved import Chosen, StageConfig
from finetune_trainer.data import check
from finetune_trainer.data.read import DataFile, locate
from finetune_trainer.data.size import PreparedSize
from finetune_trainer.data.ticker import Ticker

Stamp = tuple[int, int] | None


@dataclass(frozen=True)
class Rows:
    """The dataset of a job, every row read and checked once."""

    train: tuple[check.Source, ...]
    train_scan: check.Scan
    validation: tuple[check.Source, ...]
    validation_scan: check.Scan | None
    warnings: tuple[Problem, ...]
    stamps: tuple[Stamp, ...]
    """Of each file before its rows were read."""
    prepared_bytes: int
    """What prepared data will take on the disk, by the text of the rows."""

    @property
    def files(self) -> tuple[DataFile, ...]:
        """All files, training first."""
        return tuple(file for source in (*self.train, *self.validation) for file in source.files)

    @property
    def changed(self) -> bool:
        """Whether a file is no longer the one whose rows were read."""
        return stamps_of(self.files) != self.stamps


def stamps_of(files: Sequence[DataFile]) -> tuple[Stamp, ...]:
    """Return size and time of each file, None for one that is gone."""
    return tuple(map(_stamp, files))


def _stamp(file: DataFile) -> Stamp:
    try:
        found = file.path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def read_dataset(config: StageConfig) -> Rows:
    """Find every file and check every row; raises ``Refused`` with all mistakes of one split."""
    dataset = config.job.spec.dataset
    volumes = config.mounts.volumes
    held = dataset.validation.sources if dataset.validation else None
    train, skipped = _sources(dataset.train, volumes, "spec.dataset.train")
    validation, more = _sources(held or [], volumes, "spec.dataset.validation.sources")
    settings = settings_of(config.job.spec)
    stamps = stamps_of([file for source in (*train, *validation) for file in source.files])
    size = PreparedSize(dataset)
    with Ticker("checking") as ticker:

        def count(row: check.Checked) -> None:
            ticker.tick()
            size.add(row)

        train_scan = check.scan(train, settings, count)
        validation_scan = check.scan(validation, settings, count) if validation else None
    warnings = [*skipped, *more, *judged(config, train_scan)]
    if validation_scan is not None:
        warnings += judged(config, validation_scan)
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
    return Rows(train, train_scan, validation, validation_scan, tuple(warnings), stamps, size.bytes)


def judged(config: StageConfig, scan: check.Scan) -> list[Problem]:
    """Return warnings; raises ``Refused`` when the bad rows of a split may not be dropped."""
    dataset = config.job.spec.dataset
    return check.verdict(scan, dataset.invalid_rows, dataset.max_invalid_fraction)


def settings_of(spec: JobSpec) -> check.Settings:
    """Return what of the job decides whether a row is valid."""
    dataset = spec.dataset
    return check.Settings(
        dataset.loss_on, dataset.alpaca_prompt == "Stanford", dataset.system_prompt
    )


def _sources(
    specs: Sequence[DataSource], volumes: dict[str, str], field: str
) -> tuple[tuple[check.Source, ...], list[Problem]]:
    """Locate every source; files of one name are told apart by their URI. Returns warnings too."""
    found: list[check.Source] = []
    problems: list[Problem] = []
    warnings: list[Problem] = []
    for index, spec in enumerate(specs):
        try:
            located = locate(spec.uri, volumes, f"{field}[{index}].uri")
            found.append(check.Source(f"{field}[{index}]", spec, located.files))
            if located.unread:
                warnings.append(_unread(located.unread, f"{field}[{index}].uri"))
        except Refused as refused:
            problems += refused.problems
    if problems:
        raise Refused(*problems)
    names = [file.shown for source in found for file in source.files]
    sources = tuple(
        check.Source(
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
    return sources, warnings


def _unread(names: Sequence[str], field: str) -> Problem:
    more = ", ..." if len(names) > check.MAX_LISTED else ""
    listed = ", ".join(names[: check.MAX_LISTED])[:900] + more
    return Problem(
        code="unread-files",
        message=f"files of the folder that are not read: {listed}",
        fix="write them as .jsonl or .json, or these with .gz, or move them elsewhere",
        field=field,
        severity="warning",
    )


def _full_name(uri: str, shown: str) -> str:
    return uri if uri.endswith(f"/{shown}") else f"{uri.rstrip('/')}/{shown}"


def formats_chosen(rows: Rows) -> tuple[Chosen, ...]:
    """Return the formats that were read off the first rows."""
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
