"""What holds of the planner whatever an executor saw."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.checkpoint import CheckpointRef, Claim, Rejected
from finetune_api.document import Document
from finetune_api.job.lifecycle import Recovery
from finetune_api.problem import Problem
from finetune_api.reports import Goodput, PrepareReport, Progress, TerminationReport
from finetune_api.status import JobStatus, Ledger
from finetune_operator.observed import (
    ChildState,
    Live,
    Observed,
    ProcessEnd,
    Waiting,
    WorkspaceState,
)
from finetune_operator.plan import account, plan
from finetune_operator.status import derive
from finetune_operator.steps import Finish, StartAttempt, StartPrepare, StartPublish, Stop
from harness.simulation import DIGEST, START, make_choices, make_job
from harness.stage_config import UID

JOB = make_job({"resources": {"nodes": 2}})
NAMES = ("tiny-prepare", "tiny-prepare-2", "tiny-1", "tiny-2", "tiny-3", "tiny-publish", "other")
CODES = (None, 0, 1, 10, 11, 12, 13, 14, 15, 16, 17, 20, 21, 137, 143, -5, 999)
REASONS = (
    None,
    "OOMKilled",
    "EvictedOwnLimits",
    "DisruptionTarget",
    "Evicted",
    "Deleted",
    "NodeLost",
)


def texts(longest: int) -> st.SearchStrategy[str]:
    """Draw nothing, something odd, or as much as fits."""
    return st.sampled_from(["", "é\n\x00 \U0001f600", "x" * longest])


def of(model: type[Document], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw a model; hypothesis itself would fill the fields once more by their aliases."""
    return st.fixed_dictionaries(fields).map(lambda values: model(**values))


times = st.one_of(
    st.integers(-(10**5), 10**6).map(lambda s: START + timedelta(seconds=s)),
    st.sampled_from([datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]),
)
refs = of(
    CheckpointRef,
    step=st.integers(0, 100),
    path=st.sampled_from(["checkpoints/1/step-5", "checkpoints/2/step-9", "", "a/b/c", "x/²/y"]),
    digest=st.just(DIGEST),
)
problems = of(Problem, code=st.just("said"), message=texts(1024), fix=texts(1024))
reports = of(
    TerminationReport,
    stage=st.sampled_from(["prepare", "train", "publish"]),
    job_uid=st.sampled_from([UID, "another"]),
    exit_code=st.sampled_from([code for code in CODES if code is not None]),
    message=texts(512),
    attempt=st.integers(0, 4),
    node=st.integers(0, 2),
    problems=st.lists(problems, max_size=3).map(tuple),
    step=st.integers(0, 100),
    checkpoint=st.none() | refs,
    goodput=of(Goodput, productive=st.floats(0, 1e6)),
)
ends = st.builds(
    ProcessEnd,
    name=texts(300),
    at=times,
    exit_code=st.sampled_from(CODES),
    reason=st.sampled_from(REASONS),
    message=texts(2000),
    report=st.none() | reports,
)
waitings = st.builds(
    Waiting,
    reason=st.sampled_from(["WaitingForRoom", "ImagePullFailed"]),
    message=texts(2000),
)
children = st.builds(
    ChildState,
    name=st.sampled_from(NAMES),
    uid=st.sampled_from(["u1", "u2", ""]),
    processes=st.integers(0, 3),
    running=st.integers(0, 3),
    ends=st.lists(ends, max_size=3).map(tuple),
    over=st.booleans(),
    active_since=st.none() | times,
    ran=st.booleans(),
    waiting=st.none() | waitings,
    stopped_at=st.none() | times,
    told_at=st.none() | times,
    held=st.booleans(),
    platform_status=texts(200),
)
claims = of(
    Claim,
    sequence=st.integers(1, 5),
    job_uid=st.sampled_from([UID, "another"]),
    attempt=st.integers(1, 4),
    pod_uid=st.just("p"),
    resumes_from=st.none() | refs,
    rejected=st.lists(
        of(
            Rejected,
            path=st.sampled_from(["checkpoints/1/step-5", "checkpoints/2/step-9"]),
            step=st.integers(0, 9),
            reason=texts(512),
        ),
        max_size=4,
    ).map(tuple),
    time=st.just(""),
)
progresses = of(
    Progress,
    job_uid=st.sampled_from([UID, "another"]),
    attempt=st.integers(1, 4),
    claim=st.integers(0, 4),
    step=st.integers(0, 100),
    checkpoint=st.none() | refs,
)
observations = st.builds(
    Observed,
    live=st.builds(
        Live,
        suspend=st.booleans(),
        recovery=of(
            Recovery,
            max_failures=st.integers(0, 3),
            max_preemptions=st.none() | st.integers(0, 3),
            retry_generation=st.integers(0, 2),
        ),
        active_deadline_seconds=st.none() | st.integers(1, 10**9),
        ttl_seconds_after_finished=st.none() | st.integers(0, 10**9),
    ),
    children=st.lists(children, max_size=4).map(tuple),
    report=st.none() | of(PrepareReport, job_uid=st.just(UID)),
    choices=st.none() | st.just(make_choices()),
    progress=st.none() | progresses,
    claim=st.none() | claims,
    checkpoint=st.none() | refs,
    workspace=st.builds(WorkspaceState, shared=st.booleans(), problem=st.none() | waitings),
)
histories = st.lists(st.tuples(observations, times), min_size=1, max_size=8)


def latest(at: datetime, seconds: float) -> datetime:
    """Return a time some seconds later, as far as there is one."""
    return at + min(timedelta(seconds=seconds), datetime.max.replace(tzinfo=UTC) - at)


def frozen(ledger: Ledger) -> dict[str, Any]:
    """What of a terminal ledger must never change but by a retry."""
    return ledger.model_dump(exclude={"retry_generation"})


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories)
def test_whatever_was_observed(history: list[tuple[Observed, datetime]]) -> None:
    ledger = Ledger()
    status = JobStatus()
    named = {"tiny-prepare", "other"}
    for drawn, now in history:
        before = ledger
        # Nobody can have started a child that the ledger has never named.
        known = tuple(child for child in drawn.children if child.name in named)
        seen = replace(drawn, children=known)
        ledger = account(JOB, before, seen, now)
        named |= {ledger.child.name} if ledger.child else set()
        retried = ledger.retry_generation > before.retry_generation
        # The same evidence, and the same a day later, counts once.
        assert account(JOB, ledger, seen, now) == ledger
        # One end is at most one step of each counter.
        assert ledger.attempt - before.attempt in (0, 1, 2 if retried else 1)
        if not retried:
            assert ledger.failures - before.failures in (0, 1)
            assert ledger.preemptions - before.preemptions in (0, 1)
        assert ledger.interrupted_starts <= ledger.attempts_without_progress
        # Terminal is terminal, unless somebody asks for a retry.
        if before.outcome == "Succeeded" or (before.outcome and not retried):
            assert frozen(ledger) == frozen(before)
        # What a planner leaves can be written and read again.
        assert Ledger.model_validate(ledger.model_dump()) == ledger
        step = plan(JOB, ledger, seen, now)
        status = derive(JOB, ledger, seen, step, now, status)
        assert JobStatus.model_validate(status.to_json()) == status
        if isinstance(step, StartPrepare | StartAttempt | StartPublish):
            assert ledger.outcome is None
            assert not seen.live.suspend
            assert seen.child(ledger.child) is None
            alive = [child for child in seen.children if not child.over]
            # What may still run of an earlier one was told to end, all of it, and long ago.
            assert not alive or seen.workspace.shared
            for child in alive:
                assert child.told_at is not None
                assert now >= latest(child.told_at, 180)
        if isinstance(step, StartAttempt):
            assert step.attempt.number == ledger.attempt
            assert ledger.prepared
            assert not ledger.trained
        if ledger.outcome is not None:
            assert isinstance(step, Stop | Finish)
