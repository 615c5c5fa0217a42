"""One look at a job: read, account, write the ledger; or, where there is no news, plan and act."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from finetune_api.document import digest_of
from finetune_api.problem import Problem, Refused
from finetune_api.status import JobStatus, ResolvedRef
from finetune_operator import metrics
from finetune_operator.acceptance import Acceptance, Accepted, Lost
from finetune_operator.act import Deed, act, clean, superseded
from finetune_operator.events import Recorder, transitions
from finetune_operator.known_jobs import KnownJobs, Stale
from finetune_operator.kube import (
    FINETUNE_JOBS,
    Conflict,
    Forbidden,
    Kube,
    KubeError,
    Object,
    is_ending,
    uid_of,
)
from finetune_operator.live_spec import no_limits
from finetune_operator.log_lines import ATTEMPT
from finetune_operator.observe import Around, Observer
from finetune_operator.observed import Observed
from finetune_operator.ownership import NameTaken
from finetune_operator.plan import account, plan
from finetune_operator.progress import Puller
from finetune_operator.queue import Key
from finetune_operator.refusal import refused, words
from finetune_operator.status import derive
from finetune_operator.steps import (
    Finish,
    StartAttempt,
    StartPrepare,
    StartPublish,
    Step,
    Stop,
    Wait,
)
from finetune_operator.workspace_folders import Folders, told
from finetune_operator.workspace_growth import Growth, wanted

log = logging.getLogger(__name__)

WRITTEN = 4
"""Versions of a job that are remembered as our own."""
STARTED = 5.0
"""Seconds after which a start that gave no sign is looked at again."""
_SOFT = frozenset({"progress", "memory", "summary"})
"""What moves with every step: written with the progress, and not by itself."""


@dataclass
class Worker:
    """What a look needs. Nothing in it is lost with the process but time."""

    kube: Kube
    acceptance: Acceptance
    observer: Observer
    puller: Puller
    recorder: Recorder
    progress_seconds: float = 60.0
    unreachable_seconds: float = 30.0
    restarts_at_once: int = 50
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    unaccepted: set[Key] = field(default_factory=set)
    """Looked at again when a profile changes."""
    settled: dict[Key, str] = field(default_factory=dict)
    """Jobs that rest after their end, with the version in which they were seen to."""
    known: KnownJobs = field(default_factory=KnownJobs)
    """Spares a look the question how the job is now."""
    growth: Growth = field(init=False)
    folders: Folders = field(init=False)
    _uids: dict[Key, str] = field(default_factory=dict)
    _written: dict[Key, tuple[str, ...]] = field(default_factory=dict)
    _restarting: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Remember of claims only what was refused lately."""
        self.growth, self.folders = Growth(self.kube), Folders(self.kube)

    async def look(self, key: Key) -> float | None:
        """Look at a job once; returns the seconds until the next look, None: when something happens.

        Raises ``KubeError`` where the API server did not do what it was asked. Nothing is lost by
        that: the next look begins anew.
        """
        known = self.known.get(key)
        if known is not None:
            try:
                return await self._look_at(key, known, fresh=False)
            except (Stale, Conflict):
                pass
            except KubeError:
                self.known.forget(key)
                raise
        body = await self.kube.find(FINETUNE_JOBS, key.namespace, key.name)
        if body is None:
            self.known.forget(key)
            self._meet(key, "")
            return None
        self.known.learn(body)
        return await self._look_at(key, body, fresh=True)

    async def _look_at(self, key: Key, body: Object, *, fresh: bool) -> float | None:
        """Look at a job as it is now, or, where it is not ``fresh``, as it was remembered.

        Raises ``Stale`` where something is to be done that only a job as it is now may want.
        """
        self._meet(key, uid_of(body))
        if is_ending(body):
            return None
        try:
            status = JobStatus.model_validate(body.get("status") or {})
        except ValidationError as error:
            text = f"status cannot be read, so nothing is done: {_first(error)}"
            log.error(text)
            await self.recorder.record(body, "Warning", "StatusUnreadable", text)
            return None
        changes = self.acceptance.changes
        try:
            accepted = await self.acceptance.accepted(body, status, fresh=fresh)
        except Refused as refusal:
            await self._refuse(key, body, status, *words(refusal.problems))
            # A profile that came in the meantime found nothing that was refused.
            return None if changes == self.acceptance.changes else 0.0
        except NameTaken as taken:
            await self._refuse(key, body, status, "NameTaken", taken.message)
            return self.unreachable_seconds
        except Forbidden as error:
            full = "exceeded quota" in error.message
            reason = "QuotaExceeded" if full else "RightMissing"
            await self._refuse(key, body, status, reason, str(error))
            return self.unreachable_seconds
        except Lost as lost:
            await self._refuse(key, body, status, "ResolvedJobLost", str(lost))
            return self.unreachable_seconds
        self.unaccepted.discard(key)
        ATTEMPT.set(status.attempt)
        return await self._turn(key, body, status, accepted, fresh=fresh)

    async def _turn(
        self, key: Key, body: Object, status: JobStatus, accepted: Accepted, *, fresh: bool
    ) -> float | None:
        """Account, write the ledger where it has changed, then act on what was planned from it.

        A ledger is written under the version that was read, so that a job which was remembered
        and has changed is noticed; where nothing was written, nothing is done to such a job.

        What is done was written down before; that it was planned from what this look has seen, and
        not from a newer one, is no different from a look that was slow.
        """
        job = accepted.job
        if status.resolved is None:
            ref = ResolvedRef(config_map=accepted.config_map, digest=accepted.digest)
            known = status.model_copy(update={"resolved": ref})
        else:
            known = status
        around, seen = await self.observer.observe(body, accepted, known)
        known = _frozen(known, seen)
        notes = await self._tell(body, accepted, around)
        now = self.clock()
        ledger = account(job, known, seen, now)
        step = plan(job, ledger, seen, now)
        assert isinstance(ledger, JobStatus)
        if ledger != status:
            after = noted(derive(job, ledger, seen, step, now, known), notes)
            body = await self._write(body, status, after, "ledger")
            self._count(status, after)
            status, fresh = after, True
        if not fresh and does_something(step):
            raise Stale
        deed = Deed(body, accepted, status, seen, around, self.observer)
        done = self._held_back(job.uid, step) or await act(self.kube, step, deed)
        if isinstance(done, Finish) and done.expired:
            return None
        after = noted(derive(job, ledger, seen, done, now, status), notes)
        if is_worth_writing(status, after):
            body = await self._write(body, status, after, "derived")
            fresh = True
        if not isinstance(done, StartPrepare | StartAttempt | StartPublish | Stop):
            if not fresh and superseded(seen.children, deed.status):
                raise Stale
            await clean(self.kube, deed)
        self._follow(key, deed, after)
        if isinstance(done, Finish):
            self._rest(key, body, done, job.uid)
        return self._next(done, seen, now, changed=done is not step)

    async def _tell(self, body: Object, accepted: Accepted, around: Around) -> tuple[Problem, ...]:
        """Say what the user would not see otherwise; returns changes that have no effect."""
        if around.old_folders and around.claim is not None:
            await self.recorder.record(body, "Normal", "WorkspaceReused", told(around.old_folders))
            await self.folders.add(around.claim, accepted.job.name, accepted.job.uid)
        if around.problems:
            _, text = words(around.problems)
            await self.recorder.record(body, "Warning", "ChangeRefused", text)
        size = wanted(body, around.claim)
        if around.claim is None or size is None:
            return around.problems
        profile = await self.acceptance.profile(accepted)
        reference = accepted.job.spec.profile_ref
        if profile is None and reference is not None:
            kept: Problem | None = no_limits(reference.name, "spec.workspace.size")
        else:
            kept = await self.growth.grow(around.claim, size, profile)
        if kept is None:
            return around.problems
        _, text = words((kept,))
        await self.recorder.record(body, "Warning", "WorkspaceNotGrown", text)
        return (*around.problems, kept)

    def _held_back(self, uid: str, step: Step) -> Wait | None:
        """Keep an attempt after the first from starting while too many others are."""
        if not isinstance(step, StartAttempt) or step.attempt.number == 1:
            return None
        if uid in self._restarting or len(self._restarting) < self.restarts_at_once:
            self._restarting.add(uid)
            return None
        text = f"{len(self._restarting)} other jobs are starting again"
        return Wait(None, "Recovering", "WaitingForOtherRestarts", text)

    def _follow(self, key: Key, deed: Deed, status: JobStatus) -> None:
        """Ask for the progress of an attempt that runs, and let go of what is over."""
        uid = deed.accepted.job.uid
        child = deed.observed.child(status.child)
        if child is not None and (child.ran or child.over):
            self._restarting.discard(uid)
        source = self.observer.source(key, deed.accepted, status, deed.around, deed.observed)
        if source is not None:
            self.puller.want(source)
        else:
            self.puller.leave(uid)
        if status.outcome is not None:
            self._restarting.discard(uid)
            self.puller.forget(uid)

    def _next(self, step: Step, seen: Observed, now: datetime, *, changed: bool) -> float | None:
        """Return the seconds until the next look."""
        at: datetime | None = None
        longest: float | None = None
        match step:
            case Finish(expires=expires):
                at = expires
            case Stop(look_again=again):
                at, longest = again, self.progress_seconds
            case StartPrepare() | StartAttempt() | StartPublish():
                longest = STARTED
            case Wait(until=until, condition="Suspended") | Wait(until=until, reason="Training"):
                # Whatever ends it is watched, and progress comes by itself.
                at = until
            case Wait(until=until):
                at, longest = until, self.progress_seconds
        if changed or seen.workspace.problem is not None:
            # Mended elsewhere, by something that is not watched.
            longest = self.unreachable_seconds
        left = None if at is None else max(0.1, (at - now).total_seconds())
        return min((one for one in (left, longest) if one is not None), default=None)

    def _rest(self, key: Key, body: Object, step: Finish, uid: str) -> None:
        if step.expires is None:
            self.settled[key] = str(body["metadata"].get("resourceVersion"))
        self.observer.seen.forget(key, uid)

    async def _refuse(
        self, key: Key, body: Object, status: JobStatus, reason: str, message: str
    ) -> None:
        """Say in status why the job is not accepted."""
        self.unaccepted.add(key)
        generation = int(body["metadata"].get("generation") or 0)
        after = refused(status, generation, reason, message, self.clock())
        if after != status:
            await self._write(body, status, after, "refused")

    async def _write(self, body: Object, before: JobStatus, after: JobStatus, cause: str) -> Object:
        """Write the status under the version that was read, then say what has changed.

        Returns the job as it is now.
        """
        # The API server keeps who wrote which field; it need not be told what it has told us.
        metadata = {name: it for name, it in body["metadata"].items() if name != "managedFields"}
        new = {**body, "metadata": metadata, "status": after.to_json()}
        found = await self.kube.replace_status(FINETUNE_JOBS, new)
        key = Key(metadata["namespace"], metadata["name"])
        self.known.learn(found)
        versions = self._written.get(key, ())[1 - WRITTEN :]
        self._written[key] = (*versions, str(found["metadata"].get("resourceVersion")))
        metrics.STATUS_WRITES.labels(cause).inc()
        for kind, reason, message in transitions(before, after):
            await self.recorder.record(body, kind, reason, message)
        return found

    def _count(self, before: JobStatus, after: JobStatus) -> None:
        if after.outcome is not None and before.outcome is None:
            metrics.JOBS_FINISHED.labels(after.outcome).inc()
        failure = after.last_failure
        if failure is not None and failure != before.last_failure:
            metrics.ATTEMPTS_ENDED.labels(failure.class_).inc()

    def is_own(self, key: Key, version: str) -> bool:
        """Tell whether a version of a job is one of the last that looks at it have written."""
        return version in self._written.get(key, ())

    def _meet(self, key: Key, uid: str) -> None:
        """Forget what was known of a job that is gone, or that another has taken the name of."""
        known = self._uids.get(key)
        if known is not None and known != uid:
            self.acceptance.forget(known)
            self.observer.seen.forget(key, known)
            self.puller.forget(known)
            self._restarting.discard(known)
            self.settled.pop(key, None)
            self.unaccepted.discard(key)
        # Pods that go after their job tell of it when it is known no more.
        self.observer.seen.forget_others(key, uid)
        if uid:
            self._uids[key] = uid
        else:
            self._uids.pop(key, None)
            self._written.pop(key, None)


def _frozen(status: JobStatus, seen: Observed) -> JobStatus:
    """Return a status that knows by its digest what preparation found and chose."""
    ref, report = status.resolved, seen.report
    if ref is None or ref.prepared is not None or report is None:
        return status
    ref = ref.model_copy(update={"prepared": digest_of(report.to_json())})
    return status.model_copy(update={"resolved": ref})


def does_something(step: Step) -> bool:
    """Tell whether a step changes anything but the job's status."""
    return not isinstance(step, Wait | Finish) or (isinstance(step, Finish) and step.expired)


def noted(status: JobStatus, problems: Sequence[Problem]) -> JobStatus:
    """Return a status whose condition Accepted says which changes have no effect, and why."""
    if not problems:
        return status
    _, text = words(problems)
    said = tuple(
        one.model_copy(update={"message": text}) if one.type == "Accepted" else one
        for one in status.conditions
    )
    return status.model_copy(update={"conditions": said})


def is_worth_writing(before: JobStatus, after: JobStatus) -> bool:
    """Tell whether a status says more than the one that is there.

    Loss, rate and ETA go with the step: they are no reason by themselves.
    """
    if before == after:
        return False
    if _hard(before) != _hard(after):
        return True
    old, new = before.progress, after.progress
    return new is not None and (old is None or old.step != new.step)


def _hard(status: JobStatus) -> dict[str, Any]:
    found = status.model_dump(exclude=set(_SOFT))
    words_ = status.summary
    found["summary"] = (
        words_.reason,
        words_.gpus,
        words_.restarts,
        words_.model,
        words_.method,
    )
    found["memory"] = None if status.memory is None else status.memory.verdict
    return found


def _first(error: ValidationError) -> str:
    wrong = error.errors()[0]
    return f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"[:512]
