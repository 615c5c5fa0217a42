"""``finetune logs``: what the processes of a job print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from finetune_api.names import Layout
from finetune_api.problem import Problem, Refused
from finetune_cli import place, problem_lines
from finetune_cli.cluster.connection import ApiRefusal, Cluster, NoAnswer, refused, unreachable
from finetune_cli.cluster.jobs import ClusterJob
from finetune_cli.cluster.pod_logs import Follower, pods_of, print_logs
from finetune_cli.cluster.pods import STAGES, Wanted, choose
from finetune_cli.run.log_files import runs
from finetune_cli.run.record import read_record


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "logs",
        help="show what the processes of a job print",
        description="Show the logs of a job: of what ran last (prepare, an attempt, publish), unless"
        " another is named. With -f it goes on with the pods of the next attempt, until the job has"
        " ended. Lines of several pods begin with the pod's name.",
    )
    place.add_arguments(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on as lines come")
    parser.add_argument(
        "--attempt", metavar="K", type=_count(1), help="of this attempt, or of this try of --stage"
    )
    parser.add_argument(
        "--rank", metavar="N", type=_count(0), help="of the pod with this place in the attempt"
    )
    parser.add_argument("--stage", choices=STAGES, help="of this stage")
    parser.add_argument(
        "--previous",
        action="store_true",
        help="of the run before the newest: every attempt has pods of its own",
    )


def _count(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least} on")
        return int(text)

    return number


def main(arguments: argparse.Namespace) -> int:
    """Show the logs; 1 where there are none."""
    wanted = Wanted(arguments.stage, arguments.attempt, arguments.rank, arguments.previous)
    try:
        _check(wanted, follow=arguments.follow)
        layout = place.local_job(arguments)
        if layout is not None:
            return _local(layout, wanted, follow=arguments.follow)
        cluster, job = place.cluster_job(arguments)
        return _of_cluster(cluster, job, wanted, follow=arguments.follow)
    except Refused as error:
        print("\n".join(problem_lines.lines(error.problems)), file=sys.stderr)
        return 1


def _check(wanted: Wanted, *, follow: bool) -> None:
    if wanted.previous and (follow or wanted.attempt is not None):
        other = "--attempt" if wanted.attempt is not None else "-f"
        raise Refused(
            Problem(
                code="flags-contradict",
                message=f"--previous names a run that is over; {other} says something else",
                fix="keep one of them",
            )
        )


def _of_cluster(cluster: Cluster, job: ClusterJob, wanted: Wanted, *, follow: bool) -> int:
    readable = True
    try:
        if follow:
            there = Follower(cluster, job, wanted, _out, _err).run()
        else:
            pods = choose(pods_of(cluster, job), wanted)
            there = bool(pods)
            readable = print_logs(cluster, pods, _out, _err)
    except ApiRefusal as error:
        raise refused(error, cluster, "read pods and their logs") from error
    except NoAnswer as error:
        raise unreachable(error, cluster) from error
    if not there:
        raise Refused(_nothing_left(job, wanted))
    return 0 if readable else 1


def _nothing_left(job: ClusterJob, wanted: Wanted) -> Problem:
    """Say that the pods are gone, or never were, and what is left of them."""
    stage = wanted.stage or "train"
    what = f" of {wanted.stage}" if wanted.stage else ""
    if wanted.attempt is not None:
        what = f" of attempt {wanted.attempt}" + (f" at {stage}" if stage != "train" else "")
    what += f" with rank {wanted.rank}" if wanted.rank is not None else ""
    what += " before the newest" if wanted.previous else ""
    if not job.status.attempt and not job.status.tries:
        return Problem(
            code="no-pods",
            message=f"job {job.name} has had no pods yet: it is {job.status.phase or 'new'}",
            fix=f"see why with: finetune watch {job.name} -n {job.namespace}",
        )
    return Problem(
        code="no-pods",
        message=f"no pod{what} of job {job.name} is there (any more); what it printed went with it",
        fix=f"tracebacks of processes that failed are kept in {job.folder}/logs, how each pod"
        f" ended in {job.folder}/reports, and the last failure in status.lastFailure",
    )


def _local(layout: Layout, wanted: Wanted, *, follow: bool) -> int:
    """Show what the processes of a job of this machine have printed: it stays when they are over."""
    record = read_record(layout.status)
    stage = wanted.stage or ("train" if wanted.attempt is not None else None)
    found = runs(layout.logs, stage, wanted.attempt)
    found = found[: len(found) - wanted.previous]
    newest = found[-1] if found else ()
    files = [file.path for file in newest if wanted.rank in (None, file.node)]
    if not files:
        raise Refused(
            Problem(
                code="no-logs",
                message=f"job {record.metadata.name} of this machine has no such log",
                fix=f"see what is in {layout.logs}",
            )
        )
    if follow:
        raise Refused(
            Problem(
                code="follow-here",
                message="the log of a job of this machine is a plain file",
                fix=f"follow it with: tail -F {' '.join(map(str, files))}",
            )
        )
    for file in files:
        start = f"[{file.stem}] " if len(files) > 1 else ""
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                print(start + line, end="")
    return 0


def _out(line: str) -> None:
    print(line, flush=True)


def _err(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
