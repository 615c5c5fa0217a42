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
from finetune_trainer.data.ticker import Ticker


@dataclass(frozen=True)
class Rows:
    """The dataset of a job, every row read and checked once."""

    train: tuple[check.Source, ...]
    train_scan: check.Scan
    validation: tuple[check.Source, ...]
    validation_scan: check.Scan | None
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


def read_dataset(config: StageConfig) -> Rows:
    """Find every file and check every row; raises ``Refused`` with all mistakes of one split."""
    dataset = config.job.spec.dataset
    volumes = config.mounts.volumes
    held = dataset.validation.sources if dataset.validation else None
    train = _sources(dataset.train, volumes, "spec.dataset.train")
    validation = _sources(held or [], volumes, "spec.dataset.validation.sources")
    settings = settings_of(config.job.spec)
    with Ticker("checking") as ticker:
        train_scan = check.scan(train, settings, lambda _: ticker.tick())
        validation_scan = (
            check.scan(validation, settings, lambda _: ticker.tick()) if validation else None
        )
    warnings = judged(config, train_scan)
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
    return Rows(train, train_scan, validation, validation_scan, tuple(warnings))


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
) -> tuple[check.Source, ...]:
    """Locate every source; files of one name are told apart by their URI."""
    found: list[check.Source] = []
    problems: list[Problem] = []
    for index, spec in enumerate(specs):
        try:
            files = locate(spec.uri, volumes, f"{field}[{index}].uri")
            found.append(check.Source(f"{field}[{index}]", spec, files))
        except Refused as refused:
            problems += refused.problems
    if problems:
        raise Refused(*problems)
    names = [file.shown for source in found for file in source.files]
    return tuple(
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
