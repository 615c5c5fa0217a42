"""``finetune watch``: follow a job, of this machine from its folder or of a cluster by a watch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import sleep, time

from finetune_api.names import Layout
from finetune_api.problem import Refused
from finetune_api.reports import CompletionManifest, Progress
from finetune_cli import place, problem_lines
from finetune_cli.closing import failure_lines, summary
from finetune_cli.cluster.follow import follow
from finetune_cli.run.command import open_view
from finetune_cli.run.lock import is_held
from finetune_cli.run.look import read
from finetune_cli.run.processes import alive
from finetune_cli.run.record import Record, read_record

LOOK = 0.5
"""Seconds between two looks."""
LEFT = 3.0
"""Seconds after which a job of this machine that nobody works on is not waited for."""
FRESH = 60.0
"""Seconds since its files changed in which a job is worked on, wherever that is."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "watch",
        help="follow a job that runs",
        description="Show a job until it has ended: one of this machine, if there is one of this"
        " name, else one of the cluster. Changes nothing; Ctrl-C ends the watching, not the job.",
        epilog="Exit codes: 0 succeeded, or goes on (--once); 1 failed, was deleted, is left by the"
        " finetune run that worked on it, or cannot be watched; 130 stopped with Ctrl-C.",
    )
    place.add_arguments(parser)
    parser.add_argument("--once", action="store_true", help="show the state once and leave")


def main(arguments: argparse.Namespace) -> int:
    """Show the job; the exit codes are in the verb's help."""
    try:
        layout = place.local_job(arguments)
        if layout is not None:
            return _local(layout, once=arguments.once)
        cluster, job = place.cluster_job(arguments)
        return follow(cluster, job, once=arguments.once)
    except Refused as refused:
        print("\n".join(problem_lines.lines(refused.problems)), file=sys.stderr)
        return 1


def _local(layout: Layout, *, once: bool) -> int:
    record = read_record(layout.status)
    name = record.metadata.name
    view = open_view()
    left = 0
    try:
        view.say(f"{name}  {layout.root.resolve()}")
        while True:
            view.show(record, read(Progress, layout.progress, record.metadata.uid))
            if record.status.outcome is not None or once:
                break
            left = 0 if _worked_on(record, layout) else left + 1
            if left * LOOK > LEFT:
                view.say(
                    f"no finetune run on this machine works on {name}: if none does on another, the"
                    " same command as before goes on with it"
                )
                return 1
            sleep(LOOK)
            record = read_record(layout.status)
    finally:
        view.close()
    return _close(record, layout)


def _worked_on(record: Record, layout: Layout) -> bool:
    """Tell whether a ``finetune run`` works on a job, or processes that a killed one has left.

    Not every shared file system carries a lock to other machines: what changes there tells, too.
    """
    if is_held(layout.root.resolve().parent, record.metadata.name):
        return True
    if any(alive(kept) for child in record.children for kept in child.kept):
        return True
    return any(time() - _changed(path) < FRESH for path in (layout.status, layout.progress))


def _changed(path: Path) -> float:
    """Return when a file was last changed; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _close(record: Record, layout: Layout) -> int:
    uid = record.metadata.uid
    if record.status.outcome == "Failed":
        print("\n".join(failure_lines(record)))
        return 1
    if record.status.outcome == "Succeeded":
        done = read(CompletionManifest, layout.publish_report, uid)
        print("\n".join(summary(record, layout, done, read(Progress, layout.progress, uid))))
    return 0
