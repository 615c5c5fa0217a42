"""Following one job of a cluster until it has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from finetune_api.reports import Progress
from finetune_cli.closing import spent, took_line, why_failed
from finetune_cli.cluster.connection import ApiRefusal, Cluster, NoAnswer, unreachable
from finetune_cli.cluster.jobs import ClusterJob, jobs_path, missing, parse, progress_of
from finetune_cli.cluster.watching import Change, Listed, watch
from finetune_cli.run.command import open_view
from finetune_cli.view import PlainView, RichView

Watch = Callable[..., Iterator[Change | Listed]]


def follow(cluster: Cluster, job: ClusterJob, *, once: bool = False, watch: Watch = watch) -> int:
    """Show a job of a cluster until it has ended; 0 succeeded or goes on, 1 failed or deleted.

    Raises ``Refused`` where it may not be watched.
    """
    view = open_view()
    view.say(f"{job.name}  namespace {job.namespace} of {cluster.place}")
    try:
        shown = Shown(view)
        shown.show(job)
        if not once and not job.ended:
            last = _to_the_end(cluster, job, shown, watch)
            if last is None:
                view.say(f"{job.name} was deleted")
                return 1
            job = last
    except ApiRefusal as error:
        raise missing(error, cluster, job.name) from error
    except NoAnswer as error:
        raise unreachable(error, cluster) from error
    finally:
        view.close()
    return close(job)


class Shown:
    """Shows a job, without the progress of an attempt that is over."""

    def __init__(self, view: PlainView | RichView) -> None:
        """Show it there."""
        self.view = view
        self._attempt = 0
        self._stale: object = None
        """Progress that the status told before the present attempt: it keeps it until it has newer."""
        self._last: object = None

    def show(self, job: ClusterJob) -> None:
        """Show a job as it is now."""
        if self._attempt and job.status.attempt != self._attempt:
            self._stale = self._last
        self._attempt, self._last = job.status.attempt, job.status.progress
        fresh = job.status.progress is not None and job.status.progress != self._stale
        progress: Progress | None = progress_of(job) if fresh else None
        self.view.show(job, progress)


def _to_the_end(cluster: Cluster, job: ClusterJob, shown: Shown, watch: Watch) -> ClusterJob | None:
    """Show every change; return the job as it ended, None where it was deleted before."""
    query = {"fieldSelector": f"metadata.name={job.name}"}
    for change in watch(cluster, jobs_path(cluster.namespace), query, shown.view.say):
        gone = isinstance(change, Change) and change.kind == "DELETED"
        bodies = change.bodies if isinstance(change, Listed) else (change.body,)
        now = next((found for found in map(parse, bodies) if found.uid == job.uid), None)
        if now is None or gone:
            return now if now is not None and now.ended else None
        shown.show(now)
        if now.ended:
            return now
    return None


def close(job: ClusterJob) -> int:
    """Say how a job ended and return the exit code."""
    if job.retrying or job.status.outcome is None:
        return 0
    if job.status.outcome == "Failed":
        print("\n".join(_failed(job)))
        return 1
    print("\n".join(_succeeded(job)))
    return 0


def _failed(job: ClusterJob) -> Iterator[str]:
    yield from why_failed(job)
    yield f"  log: finetune logs {job.name} -n {job.namespace}"


def _succeeded(job: ClusterJob) -> Iterator[str]:
    status = job.status
    took = took_line(job.created, status.finished_at)
    text = f"{job.name}  Succeeded{took}   {status.summary.method} on {status.summary.model}"
    if status.progress is not None:
        text += f", {status.progress.total_steps:,} steps"
    yield text
    yield from spent(status)
    if status.output is not None:
        if "loss" in status.output.evaluation:
            yield f"  eval loss {status.output.evaluation['loss']:.3f}"
        digest = f"  {status.output.digest[:19]}" if status.output.digest else ""
        yield f"  model  {status.output.uri}{digest}"
