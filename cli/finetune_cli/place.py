"""Which job a name means: one of this machine, or one of a cluster.

Flags decide first. Without any, a job of this machine is found by its folder, and what is not found
here is looked for in the cluster. ``kubectl finetune`` means the cluster.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from finetune_api.names import Layout
from finetune_api.problem import Problem, Refused
from finetune_cli.cluster import connection
from finetune_cli.cluster.connection import Cluster, NoAnswer
from finetune_cli.cluster.jobs import ClusterJob, read_job
from finetune_cli.run.record import folders_of

WORKSPACE = "finetune-jobs"
PLUGIN = "kubectl-finetune"

Found = TypeVar("Found")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the job and where to look for it."""
    parser.add_argument("job", metavar="JOB", help="name of the job, or its folder on this machine")
    group = parser.add_argument_group("on this machine")
    group.add_argument(
        "--workspace",
        metavar="FOLDER",
        help=f"where the jobs' folders are (default: {WORKSPACE})",
    )
    connection.add_arguments(parser)


def local_job(arguments: argparse.Namespace) -> Layout | None:
    """Return the folder of a job of this machine; None: it is to be looked for in a cluster.

    Raises ``Refused`` where flags contradict each other, or ask for this machine and it has none.
    """
    cluster = connection.asked_for(arguments)
    if cluster and arguments.workspace:
        raise Refused(
            Problem(
                code="here-or-cluster",
                message="--workspace is for a job of this machine; --namespace, --context and"
                " --kubeconfig are for one in a cluster",
                fix="keep one of them",
            )
        )
    if arguments.workspace:
        found = find(arguments.job, Path(arguments.workspace))
        if found is None:
            raise Refused(_nowhere(f"no job {arguments.job} under {arguments.workspace}"))
        return found
    return None if cluster or is_plugin() else find(arguments.job, Path(WORKSPACE))


def is_plugin() -> bool:
    """Tell whether kubectl has called us."""
    return Path(sys.argv[0]).name == PLUGIN


def find(job: str, workspace: Path) -> Layout | None:
    """Return the folder of a job, from its name or from the folder itself."""
    folder = Path(job)
    try:
        if (folder / "status.json").is_file():
            return Layout(folder)
        folders = [] if not job or "/" in job else list(folders_of(workspace, job))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None
    return Layout(folders[-1]) if folders else None


def cluster_job(arguments: argparse.Namespace) -> tuple[Cluster, ClusterJob]:
    """Return the cluster and the job in it.

    Raises ``Refused`` where there is neither, or no way to it.
    """
    try:
        cluster = connection.connect(arguments)
        return cluster, answered(cluster, lambda: read_job(cluster, arguments.job))
    except Refused as refused:
        codes = {problem.code for problem in refused.problems}
        if connection.asked_for(arguments) or is_plugin() or not codes <= _NOT_THERE:
            raise
        here = f"no job {arguments.job} under {WORKSPACE} on this machine"
        raise Refused(_nowhere(f"{here}, and {refused.problems[0].message}")) from None


def answered(cluster: Cluster, ask: Callable[[], Found]) -> Found:
    """Return an answer; raises ``Refused`` where there is none."""
    try:
        return ask()
    except NoAnswer as error:
        raise connection.unreachable(error, cluster) from error


_NOT_THERE = {"job-not-found", "no-kubeconfig"}


def _nowhere(message: str) -> Problem:
    return Problem(
        code="job-not-found",
        message=message,
        fix="name the job's folder or the folder of all jobs (--workspace), or the namespace (-n)"
        " and the kubeconfig (--kubeconfig) of a cluster",
    )
