"""Checked rows become prepared data: encoded, held out, packed, written. One pass, bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune_api.checkpoint import FileEntry
from finetune_api.problem import Problem
from finetune_api.reports import DataReport
from finetune_trainer.data.cache import SplitWriter
from finetune_trainer.data.check import Checked, Findings, Scan, Settings, Source, valid_rows
from finetune_trainer.data.encode import Encoded, Encoder
from finetune_trainer.data.formats import Reader
from finetune_trainer.data.pack import Bins, alone, in_order, pack
from finetune_trainer.data.split import copies, validation_rows
from finetune_trainer.data.ticker import Ticker


@dataclass
class Split:
    """One split while it is written."""

    writer: SplitWriter
    rows: int = 0
    rows_used: int = 0
    rows_dropped: int = 0
    rows_truncated: int = 0
    rows_split: int = 0
    longest: int = 0
    trained: list[npt.NDArray[np.int32]] = field(default_factory=list)
    repeats: list[npt.NDArray[np.int32]] = field(default_factory=list)
    _trained: list[int] = field(default_factory=list)
    _repeats: list[int] = field(default_factory=list)

    def add(self, encoded: Encoded, times: int) -> None:
        """Count one row and write its documents; one that no epoch sees is counted as read."""
        self.rows += 1
        if not encoded.documents:
            self.rows_dropped += 1
            return
        if times:
            self.rows_used += 1
            self.rows_truncated += encoded.truncated
            self.rows_split += encoded.split
            self.longest = max(self.longest, encoded.longest)
        for document in encoded.documents:
            self.writer.add(document.ids, document.spans)
            self._trained.append(document.trained)
            self._repeats.append(times)
        if len(self._trained) >= 65536:
            self._settle()

    def _settle(self) -> None:
        self.trained.append(np.asarray(self._trained, dtype=np.int32))
        self.repeats.append(np.asarray(self._repeats, dtype=np.int32))
        self._trained, self._repeats = [], []

    def items(self) -> npt.NDArray[np.int64]:
        """Return the numbers of the documents of an epoch, each as often as it is seen."""
        self._settle()
        repeats = np.concatenate(self.repeats)
        return np.repeat(np.arange(len(repeats)), repeats)

    def finish(
        self, bins: Bins, items: npt.NDArray[np.int64], max_length: int, *, packing: bool
    ) -> tuple[list[FileEntry], DataReport]:
        """Write the sequences and return the files and what came of the rows."""
        lengths = self.writer.lengths
        tokens = int(lengths[items].sum(dtype=np.int64))
        trained = int(np.concatenate(self.trained)[items].sum(dtype=np.int64))
        files = self.writer.finish(items[bins.members], bins.ends)
        room = len(bins) * max_length
        return files, DataReport(
            rows=self.rows,
            rows_used=self.rows_used,
            rows_dropped=self.rows_dropped,
            rows_truncated=self.rows_truncated,
            rows_split=self.rows_split,
            sequences=len(bins),
            tokens=tokens,
            trained_tokens=trained,
            longest=self.longest,
            packing_efficiency=round(tokens / room, 6) if packing and room else 1.0,
        )


@dataclass(frozen=True)
class Plan:
    """What decides the content of prepared data, beside the rows themselves."""

    encoder: Encoder
    settings: Settings
    seed: int
    sequential: bool
    held_out: int
    """Rows of the training sources to hold out; 0 with sources of their own."""
    max_validation_rows: int | None


def write_rows(
    folder: Path,
    plan: Plan,
    train: tuple[Sequence[Source], Scan],
    validation: tuple[Sequence[Source], Scan] | None,
) -> tuple[Split, Split, list[Problem]]:
    """Encode every valid row into one of two splits; returns warnings beside them.

    Rows that turn out to be invalid are added to the findings of their scan.
    """
    splits = Split(SplitWriter(folder / "train")), Split(SplitWriter(folder / "validation"))
    warnings = Findings()
    sources, scan = train
    held = validation_rows(scan.hashes, plan.held_out, plan.seed)
    times = _times(sources, scan, plan.seed)
    total = scan.valid + (validation[1].valid if validation else 0)
    with Ticker("tokenising", total) as ticker:
        for index, encoded in enumerate(_encoded(plan, sources, scan, ticker.tick)):
            _note(encoded, scan.findings, warnings)
            if encoded.problem is None:
                splits[int(held[index])].add(encoded, 1 if held[index] else int(times[index]))
        if validation is not None:
            most = plan.max_validation_rows
            for encoded in _encoded(plan, *validation, ticker.tick):
                if most is not None and splits[1].rows_used >= most:
                    break
                _note(encoded, validation[1].findings, warnings)
                if encoded.problem is None:
                    splits[1].add(encoded, 1)
    return *splits, warnings.problems("warning")


def _times(sources: Sequence[Source], scan: Scan, seed: int) -> npt.NDArray[np.int64]:
    """Return how often each valid row is seen in an epoch."""
    parts, start = [np.empty(0, dtype=np.int64)], 0
    for source, count in zip(sources, scan.source_rows, strict=True):
        hashes = scan.hashes[start : start + count]
        parts.append(copies(hashes, source.spec.weight, seed))
        start += count
    return np.concatenate(parts)


def _encoded(
    plan: Plan, sources: Sequence[Source], scan: Scan, tick: Callable[[], None]
) -> Iterator[Encoded]:
    for source, reader in zip(sources, scan.readers, strict=True):
        yield from plan.encoder.encode(_ticked(source, plan.settings, reader, tick))


def _ticked(
    source: Source, settings: Settings, reader: Reader | None, tick: Callable[[], None]
) -> Iterator[Checked]:
    for row in valid_rows(source, settings, reader=reader):
        tick()
        yield row


def _note(encoded: Encoded, findings: Findings, warnings: Findings) -> None:
    if encoded.problem is not None:
        findings.add(encoded.problem)
    for warning in encoded.warnings:
        warnings.add(warning)


def sequences(split: Split, items: npt.NDArray[np.int64], plan: Plan, *, packing: bool) -> Bins:
    """Return the sequences of a split over ``items``, packed or one an item."""
    if not packing:
        return alone(np.arange(len(items)))
    lengths = split.writer.lengths[items]
    bins = pack(lengths, plan.encoder.max_length, plan.seed)
    return in_order(bins) if plan.sequential else bins
