"""``finetune watch``: follow a job of this machine from its folder."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from finetune_api.names import Layout
from finetune_api.problem import Problem, Refused
from finetune_api.reports import CompletionManifest, Progress
from finetune_cli import problem_lines
from finetune_cli.run.command import WORKSPACE, open_view
from finetune_cli.run.look import read
from finetune_cli.run.record import Record, folders_of, read_record
from finetune_cli.view import failure_lines, summary


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "watch",
        help="follow a job that runs",
        description="Show a job of this machine until it has ended. Changes nothing.",
    )
    parser.add_argument("job", metavar="JOB", help="name of the job, or its folder")
    parser.add_argument(
        "--workspace",
        metavar="FOLDER",
        default=WORKSPACE,
        help=f"where the jobs' folders are (default: {WORKSPACE})",
    )
    parser.add_argument("--once", action="store_true", help="show the state once and leave")


def main(arguments: argparse.Namespace) -> int:
    """Show the job; 0 when it has succeeded or goes on, 1 when it has failed."""
    try:
        layout = find(arguments.job, Path(arguments.workspace))
        record = read_record(layout.status)
        view = open_view()
        try:
            while True:
                view.show(record, read(Progress, layout.progress, record.metadata.uid))
                if record.status.outcome is not None or arguments.once:
                    break
                time.sleep(0.5)
                record = read_record(layout.status)
        finally:
            view.close()
    except Refused as refused:
        print("\n".join(problem_lines.lines(refused.problems)), file=sys.stderr)
        return 1
    return _close(record, layout)


def _close(record: Record, layout: Layout) -> int:
    uid = record.metadata.uid
    if record.status.outcome == "Failed":
        print("\n".join(failure_lines(record)))
        return 1
    if record.status.outcome == "Succeeded":
        done = read(CompletionManifest, layout.publish_report, uid)
        print("\n".join(summary(record, layout, done, read(Progress, layout.progress, uid))))
    return 0


def find(job: str, workspace: Path) -> Layout:
    """Return the folder of a job, from its name or from the folder itself.

    Raises ``Refused`` when there is none.
    """
    folder = Path(job)
    if (folder / "status.json").is_file():
        return Layout(folder)
    folders = list(folders_of(workspace, job))
    if not folders:
        raise Refused(
            Problem(
                code="job-not-found",
                message=f"no job {job} under {workspace}, and no folder of that name with a job",
                fix="name the job's folder, or the folder of all jobs with --workspace",
            )
        )
    return Layout(folders[-1])
