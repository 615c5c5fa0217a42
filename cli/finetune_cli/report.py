"""``finetune report``: the figures of a job, and where its report with the curves lies."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune_api.names import Layout
from finetune_api.problem import Refused
from finetune_api.reports import CompletionManifest
from finetune_api.source import parse_uri
from finetune_cli import place, problem_lines
from finetune_cli.cluster import connection
from finetune_cli.cluster.jobs import ClusterJob
from finetune_cli.cluster.volume_file import REPORT, command, file_of
from finetune_cli.figures import figures
from finetune_cli.run.look import read
from finetune_cli.run.record import Record, read_record


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "report",
        help="show the figures of a job and where its report lies",
        description="Show what a job has come to: data, steps, loss, evaluation, attempts and what"
        " they lost, time, memory, choices. Of this machine, if there is a job of this name, else"
        " of the cluster. The report with the curves lies beside the model: of a job of a cluster"
        " this prints the command that copies it here.",
        epilog="Exit codes: 0 shown; 1 there is no such job, or it cannot be read.",
    )
    place.add_arguments(parser)


def main(arguments: argparse.Namespace) -> int:
    """Print the figures; the exit codes are in the verb's help."""
    try:
        layout = place.local_job(arguments)
        if layout is not None:
            lines = local_lines(read_record(layout.status), layout)
        else:
            _, job = place.cluster_job(arguments)
            lines = cluster_lines(job, connection.options(arguments))
        print("\n".join(lines))
    except Refused as refused:
        print("\n".join(problem_lines.lines(refused.problems)), file=sys.stderr)
        return 1
    return 0


def cluster_lines(job: ClusterJob, options: Sequence[str] = ()) -> Iterator[str]:
    """Yield the report of a job of a cluster, which kubectl finds with these options."""
    yield from figures(job, job.created)
    status = job.status
    if status.checkpoint is not None:
        kept = status.checkpoint
        yield f"  checkpoint  step {kept.step}, {kept.digest[:19]}, {job.folder}/{kept.path}"
    if status.output is not None:
        digest = f"  {status.output.digest[:19]}" if status.output.digest else ""
        yield f"  model       {status.output.uri}{digest}"
    file = file_of(job)
    if file is None:
        return
    yield f"  {'report' if file.name == REPORT else 'metrics'}".ljust(14) + file.uri
    if status.trainer_image:
        yield f"  copy it here, once no pod of the job holds a volume of one node:\n{command(job, file, options)}"


def local_lines(record: Record, layout: Layout) -> Iterator[str]:
    """Yield the report of a job of this machine."""
    status = record.status
    yield from figures(record, record.metadata.creation_timestamp)
    if status.checkpoint is not None:
        kept = status.checkpoint
        yield f"  checkpoint  step {kept.step}, {kept.digest[:19]}, {layout.root / kept.path}"
    done = read(CompletionManifest, layout.publish_report, record.metadata.uid)
    folder = _folder(record, layout, done.uri) if done is not None else None
    if folder is not None:
        yield f"  model       {folder}"
        if (folder / REPORT).is_file():
            yield f"  report      {folder / REPORT}"
    elif layout.metrics.is_file():
        yield f"  metrics     {layout.metrics}"


def _folder(record: Record, layout: Layout, uri: str) -> Path | None:
    """Return the folder of the model on this machine; None where its claim has none here."""
    try:
        source = parse_uri(uri)
    except ValueError:
        return layout.root / uri
    volume = record.volumes.get(source.name)
    return Path(volume) / source.path if volume else None
