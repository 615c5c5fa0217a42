"""What the operator tells of itself. No metric is labelled by job: there may be thousands."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

REGISTRY = CollectorRegistry()

LOOKS = Counter(
    "finetune_looks_total", "Looks at a job, by how they ended", ["result"], registry=REGISTRY
)
LOOK_SECONDS = Histogram(
    "finetune_look_duration_seconds",
    "Time of one look at a job",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
QUEUE_DEPTH = Gauge(
    "finetune_queue_depth", "Jobs that are due and nobody looks at", registry=REGISTRY
)
QUEUE_WAITING = Gauge(
    "finetune_queue_waiting", "Jobs with a look to come, now or later", registry=REGISTRY
)
RETRIES = Counter("finetune_queue_retries_total", "Looks that follow a failure", registry=REGISTRY)
WATCH_EVENTS = Counter(
    "finetune_watch_events_total", "Changes that were seen, by kind", ["kind"], registry=REGISTRY
)
RELIST_AGE = Gauge(
    "finetune_relist_age_seconds",
    "Seconds since all jobs were last listed; before the first list, since the start",
    registry=REGISTRY,
)
READY = Gauge("finetune_ready", "1 where /readyz says ok, 0 otherwise", registry=REGISTRY)
JOBS = Gauge(
    "finetune_jobs",
    "Jobs at the last list of all, by phase and by the reason that explains it",
    ["phase", "reason"],
    registry=REGISTRY,
)
API_ERRORS = Counter(
    "finetune_api_errors_total",
    "Answers of the API server that were no success, by HTTP code (0: no answer)",
    ["code"],
    registry=REGISTRY,
)
STATUS_WRITES = Counter(
    "finetune_status_writes_total",
    "Writes of a job's status, by cause",
    ["cause"],
    registry=REGISTRY,
)
CHILDREN_CREATED = Counter(
    "finetune_children_created_total", "Children created, by stage", ["stage"], registry=REGISTRY
)
CHILDREN_STOPPED = Counter(
    "finetune_children_stopped_total",
    "Children told to end, by the class of the cause",
    ["class"],
    registry=REGISTRY,
)
JOBS_FINISHED = Counter(
    "finetune_jobs_finished_total",
    "Jobs that have ended, by outcome",
    ["outcome"],
    registry=REGISTRY,
)
ATTEMPTS_ENDED = Counter(
    "finetune_attempts_ended_total",
    "Ends of attempts that were no success, by class",
    ["class"],
    registry=REGISTRY,
)
PULLS = Counter(
    "finetune_progress_pulls_total",
    "Readings of a job's progress, by how they ended",
    ["result"],
    registry=REGISTRY,
)


def follow(
    depth: Callable[[], float],
    waiting: Callable[[], float],
    age: Callable[[], float],
    ready: Callable[[], float],
) -> None:
    """Let the gauges ask for their values when they are read."""
    QUEUE_DEPTH.set_function(depth)
    QUEUE_WAITING.set_function(waiting)
    RELIST_AGE.set_function(age)
    READY.set_function(ready)


def count_jobs(found: Mapping[tuple[str, str], int]) -> None:
    """Set the number of jobs of each phase and reason; what is not found any more is no series."""
    JOBS.clear()
    for (phase, reason), number in found.items():
        JOBS.labels(phase, reason).set(number)


def text() -> bytes:
    """Return all metrics in the text format of Prometheus."""
    return generate_latest(REGISTRY)
