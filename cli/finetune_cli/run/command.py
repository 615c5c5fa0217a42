"""``finetune run``: the same job on this machine, without a cluster."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.names import Layout
from finetune_api.problem import Problem, Refused
from finetune_api.reports import CompletionManifest, Progress
from finetune_api.resolved import ResolvedJob
from finetune_cli import job_file, problem_lines
from finetune_cli.closing import failure_lines, stopped_line, summary
from finetune_cli.run.local import LocalRun, View
from finetune_cli.run.lock import Lock
from finetune_cli.run.look import read
from finetune_cli.run.record import (
    Record,
    check_unchanged,
    folders_of,
    layout_of,
    new_metadata,
    read_record,
)
from finetune_cli.run.volumes import check_volumes, is_text, parse_volumes
from finetune_cli.view import PlainView, RichView
from finetune_cli.yaml_file import YamlDocument
from finetune_operator.observed import Live

WORKSPACE = "finetune-jobs"
STOPPED = 130
STOPPED_BY_SIGTERM = 143


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "run",
        help="run a job on this machine",
        description="Run a job on this machine: prepare, train, publish. Ctrl-C saves and stops;"
        " the same command goes on where it stopped, and tries a failed job again.",
        epilog="Exit codes: 0 succeeded; 10 invalid configuration; 11 invalid data; 12 does not"
        " fit; 13 loss not finite; 14 storage full; 15 checkpoints unusable; 16 model unavailable;"
        " 17 gate not met; 20 communication lost; 21 another run took over; 1 any other failure;"
        " 130 stopped with Ctrl-C; 143 stopped with SIGTERM.",
    )
    job_file.add_arguments(parser)
    parser.add_argument(
        "--volume",
        metavar="CLAIM=FOLDER",
        action="append",
        default=[],
        help="the folder that stands for a claim of the job; may be given several times",
    )
    parser.add_argument(
        "--workspace",
        metavar="FOLDER",
        default=WORKSPACE,
        help=f"where the jobs' folders are (default: {WORKSPACE})",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="begin a new run; what an earlier one left stays where it is",
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the job; the exit codes are in the verb's help."""
    lock = None
    try:
        resolved, document = job_file.resolve_file(arguments)
        volumes = parse_volumes(arguments.volume)
        with _located(document):
            check_volumes(resolved.spec, volumes)
        workspace = _workspace(arguments.workspace)
        lock = Lock(workspace, resolved.name)
        spec = json.loads(json.dumps(document.data["spec"]))
        words = {claim: str(folder) for claim, folder in volumes.items()}
        folders = [] if arguments.fresh else list(folders_of(workspace, resolved.name))
        if folders:
            layout, record = _continued(folders[-1], spec, words, document)
        else:
            layout, record = _new(workspace, resolved, spec, words)
        return _run(layout, record, Live.of(resolved.spec))
    except Refused as refused:
        print("\n".join(problem_lines.lines(refused.problems)), file=sys.stderr)
        codes = {problem.code for problem in refused.problems}
        return 1 if codes <= {"already-running", "status-unreadable"} else 10
    except OSError as error:
        return _stuck(error, "")
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def _located(document: YamlDocument) -> Iterator[None]:
    """Give the problems of fields their line in the file."""
    try:
        yield
    except Refused as refused:
        raise Refused(*map(document.located, refused.problems)) from None


def _workspace(text: str) -> Path:
    """Return the folder of all jobs; raises ``Refused`` where it cannot be one."""
    try:
        folder = Path(text).expanduser().resolve()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not is_text(folder):
            what = f"{folder} has a name that is no UTF-8"
        elif not there.is_dir():
            what = f"{there} is a file, not a folder"
        elif not os.access(there, os.W_OK):
            what = f"{there} cannot be written"
        else:
            return folder
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        what = f"{text[:80]} cannot be used: {reason}"
    raise Refused(
        Problem(code="workspace-unusable", message=what, fix="name another folder with --workspace")
    )


def _continued(
    folder: Path, spec: dict[str, Any], volumes: dict[str, str], document: YamlDocument
) -> tuple[Layout, Record]:
    """Return a job that was begun before; raises ``Refused`` where it is another one by now."""
    layout = Layout(folder)
    record = read_record(layout.status)
    with _located(document):
        check_unchanged(record, spec, document.file)
    return layout, record.model_copy(update={"volumes": volumes})


def _new(
    workspace: Path, resolved: ResolvedJob, spec: dict[str, Any], volumes: dict[str, str]
) -> tuple[Layout, Record]:
    metadata = new_metadata(resolved.name, resolved.namespace)
    record = Record(
        metadata=metadata,
        spec=spec,
        resolved=resolved.model_copy(update={"uid": metadata.uid}),
        volumes=volumes,
    )
    return layout_of(workspace, metadata), record


def _run(layout: Layout, record: Record, live: Live) -> int:
    view = open_view(lasting=True)
    runner = LocalRun(layout, _again(record, view), live, view)
    failed: OSError | None = None
    try:
        if record.status.outcome != "Succeeded":
            view.say(f"{record.metadata.name}  {layout.root}")
        with _interrupts(runner):
            try:
                runner.run()
            except OSError as error:
                failed = error
                runner.give_up()
    finally:
        view.close()
    if failed is not None:
        return _stuck(failed, f" in {layout.root}; its processes were ended")
    return _close(runner, layout)


def _stuck(error: OSError, where: str) -> int:
    """Say that the state of a job cannot be written down and return the exit code."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = error.strerror or str(error)
    why += f" ({error.filename})" if error.filename else ""
    problem = Problem(
        code="state-not-written",
        message=f"finetune run cannot go on{where}: {why}",
        fix="make room, or mend what it names, and run the same command: it goes on from what is saved",
    )
    print("\n".join(problem_lines.lines([problem])), file=sys.stderr)
    return ExitCode.STORAGE_FULL if full else 1


def _again(record: Record, view: View) -> Record:
    """Count a failed job's new run as a retry that its user asked for."""
    failure = record.status.last_failure
    if record.status.outcome != "Failed" or failure is None:
        return record
    view.say(f"the last run failed ({failure.class_}: {failure.message}); trying again")
    return record.model_copy(update={"retries": record.retries + 1})


def _close(runner: LocalRun, layout: Layout) -> int:
    """Say how it ended and return the exit code."""
    record = runner.record
    status, uid = record.status, record.metadata.uid
    if status.outcome == "Succeeded":
        done = read(CompletionManifest, layout.publish_report, uid)
        print("\n".join(summary(record, layout, done, read(Progress, layout.progress, uid))))
        return 0
    if status.outcome == "Failed":
        print("\n".join(failure_lines(record)))
        code = status.last_failure.exit_code if status.last_failure else None
        return code if code is not None and (10 <= code <= 17 or code in (20, 21)) else 1
    if not runner.interrupts:
        print(f"{record.metadata.name} is suspended: set spec.suspend to false to go on")
        return 0
    print(stopped_line(record))
    return STOPPED if runner.by_terminal else STOPPED_BY_SIGTERM


@contextmanager
def _interrupts(runner: LocalRun) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal save and stop; nothing is left running unseen."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _hush()
        runner.interrupt(number, frame)

    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def open_view(*, lasting: bool = False) -> PlainView | RichView:
    """Return a live view on a terminal that can move its cursor, and lines elsewhere.

    ``lasting``: the work goes on when nobody reads the lines any more. Otherwise a reader that has
    gone away raises ``BrokenPipeError``.
    """
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        if not console.is_dumb_terminal:
            return RichView(console)
    return PlainView(_lasting_line if lasting else _line)


def _line(text: str) -> None:
    print(text, flush=True)


def _lasting_line(text: str) -> None:
    """Write a line; a reader that has gone away is no reason to leave a job alone."""
    try:
        print(text, flush=True)
    except OSError:
        _hush()


def _hush() -> None:
    """Send all further output nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    os.close(null)
