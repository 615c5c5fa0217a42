"""``finetune retry``: raise ``recovery.retryGeneration`` of a job that has failed."""

from __future__ import annotations

import argparse
import sys

from finetune_api.problem import Problem, Refused
from finetune_cli import place, problem_lines
from finetune_cli.cluster import connection
from finetune_cli.cluster.connection import ApiRefusal, Cluster, refused
from finetune_cli.cluster.jobs import ClusterJob, jobs_path, missing
from finetune_operator.resolve.paths import look


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "retry",
        help="let a failed job of a cluster try again",
        description="Let a failed job try again from the stage that failed, with new budgets: it"
        " raises spec.recovery.retryGeneration by one. What was prepared and saved is used.",
        epilog="A job of this machine is tried again by the same finetune run.",
    )
    parser.add_argument("job", metavar="JOB", help="name of the job")
    connection.add_arguments(parser)


def main(arguments: argparse.Namespace) -> int:
    """Ask for another try; 1 where the job cannot be tried again."""
    try:
        cluster = connection.connect(arguments)
        generation = place.answered(cluster, lambda: raise_generation(cluster, arguments.job))
    except Refused as error:
        print("\n".join(problem_lines.lines(error.problems)), file=sys.stderr)
        return 1
    print(f"{arguments.job} tries again (recovery.retryGeneration: {generation})")
    return 0


def raise_generation(cluster: Cluster, name: str) -> int:
    """Raise the generation of a failed job and return it.

    Raises ``Refused`` for one that has not failed, or was changed at the same time.
    """
    job = _failed(cluster, name)
    asked = look(job.spec, "recovery", "retryGeneration")
    before = max(asked if isinstance(asked, int) else 0, job.status.retry_generation)
    patch = {
        "metadata": {"uid": job.uid, "resourceVersion": job.version},
        "spec": {"recovery": {"retryGeneration": before + 1}},
    }
    try:
        cluster.merge(jobs_path(cluster.namespace, name), patch)
    except ApiRefusal as error:
        if error.code == 404:
            raise missing(error, cluster, name) from error
        raise refused(error, cluster, "change finetunejobs") from error
    return before + 1


def _failed(cluster: Cluster, name: str) -> ClusterJob:
    from finetune_cli.cluster.jobs import read_job

    job = read_job(cluster, name)
    if job.status.outcome == "Failed" and not job.retrying:
        return job
    state = "is about to try again" if job.retrying else f"is {job.status.phase or 'new'}"
    raise Refused(
        Problem(
            code="not-failed",
            message=f"job {name} {state}: only a job that has failed can be tried again",
            fix=f"see how it stands with: finetune watch {name} --once -n {cluster.namespace}",
        )
    )
