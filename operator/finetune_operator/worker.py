"""One look at a job: read, account, write the ledger; or, where there is no news, plan and act."""

from __future__ import annotations

import logging
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import ValidationError

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
    Invalid,
    Kube,
    KubeError,
    Object,
    is_ending,
    uid_of,
)
from finetune_operator.live_spec import no_limits
from finetune_operator.log_lines import ATTEMPT
from finetune_operator.news import is_worth_writing, noted
from finetune_operator.observe import Around, Observer
from finetune_operator.observed import ChildState, Observed
from finetune_operator.ownership import NameTaken
from finetune_operator.plan import account, plan
from finetune_operator.progress import Puller
from finetune_operator.queue import Key
from finetune_operator.refusal import refused, words
from finetune_operator.restarts import Restarts
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
from finetune_operator.workspace_growth import Growth, unheard, wanted

log = logging.getLogger(__name__)

WRITTEN = 4
"""Versions of a job that are remembered as our own."""
STARTED = 5.0
"""Seconds after which a start that gave no sign is looked at again."""


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
    _restarts: Restarts = field(default_factory=Restarts)

    def __post_init__(self) -> None:
        """Remember of claims only what was refused lately."""
        self.growth, self.folders = Growth(self.kube), Folders(self.kube)

    @property
    def met(self) -> Set[Key]:
        """Jobs that something is remembered of."""
        return self._uids.keys()

    async def look(self, key: Key) -> float | None:
        """Look at a job once; returns the seconds until the next look, None: when something happens.

        Raises ``KubeError`` where the API server did not do what it was asked. Nothing is lost by
        that: the next look begins anew.
        """
        try:
            return await self._look_once(key)
        except (ValidationError, Invalid):
            uid = self._uids.get(key, "")
            if self.puller.known(uid) is None:
                raise
            # What a pod says of its progress is for people alone: nothing may fail for its sake.
            log.warning("a look failed; it is made again without the job's progress", exc_info=True)
            self.puller.disbelieve(uid)
            return await self._look_once(key)

    async def _look_once(self, key: Key) -> float | None:
        """Look at a job as it is known, or where that is not enough as it is now."""
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
            self._restarts.leave(uid_of(body))
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
            reason = "QuotaExceeded" if error.for_quota else "RightMissing"
            await self._refuse(key, body, status, reason, str(error))
            return self.unreachable_seconds
        except Invalid as error:
            await self._refuse(key, body, status, "CreationRefused", error.message)
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
        notes, unanswered = await self._tell(body, accepted, around)
        now = self.clock()
        ledger = account(job, known, seen, now)
        step = plan(job, ledger, seen, now)
        assert isinstance(ledger, JobStatus)
        if ledger != status:
            after = noted(derive(job, ledger, seen, step, now, known), notes)
            body = await self._write(body, status, after, "ledger")
            self._count(status, after)
            status, fresh = after, True
        if does_something(step):
            await self._confirm(key, body, fresh)
        deed = Deed(body, accepted, status, seen, around, self.observer)
        done = await self._act(step, deed, now)
        if isinstance(done, Finish) and done.expired:
            return None
        after = noted(derive(job, ledger, seen, done, now, status), notes)
        if is_worth_writing(status, after):
            body = await self._write(body, status, after, "derived")
            fresh = True
        if not isinstance(done, StartPrepare | StartAttempt | StartPublish | Stop):
            if superseded(seen.children, deed.status):
                await self._confirm(key, body, fresh)
            await clean(self.kube, deed)
        self._follow(key, deed, after, done)
        if isinstance(done, Finish):
            self._rest(key, body, done, job.uid)
        if unanswered is not None:
            raise unanswered
        return self._next(done, seen, now, changed=done is not step)

    async def _confirm(self, key: Key, body: Object, fresh: bool) -> None:
        """Raise ``Stale`` unless a job that was remembered is still the newest version of it."""
        if fresh:
            return
        found = await self.kube.find(FINETUNE_JOBS, key.namespace, key.name)
        version = body["metadata"]["resourceVersion"]
        if found is None or found["metadata"]["resourceVersion"] != version:
            raise Stale

    async def _tell(
        self, body: Object, accepted: Accepted, around: Around
    ) -> tuple[tuple[Problem, ...], KubeError | None]:
        """Say what the user would not see otherwise; returns changes that have no effect.

        And the error that is to be raised when the look is through: ends are accounted for whether
        a volume can grow or not.
        """
        if around.old_folders and around.claim is not None:
            await self.recorder.record(body, "Normal", "WorkspaceReused", told(around.old_folders))
            await self.folders.add(around.claim, accepted.job.name, accepted.job.uid)
        if around.problems:
            _, text = words(around.problems)
            await self.recorder.record(body, "Warning", "ChangeRefused", text)
        size = wanted(body, around.claim)
        if around.claim is None or size is None:
            return around.problems, None
        profile = await self.acceptance.profile(accepted)
        reference, unanswered = accepted.job.spec.profile_ref, None
        if profile is None and reference is not None:
            kept: Problem | None = no_limits(reference.name, "spec.workspace.size")
        else:
            try:
                kept = await self.growth.grow(around.claim, size, profile)
            except KubeError as error:
                unanswered, kept = error, unheard(around.claim, size, error)
        if kept is None:
            return around.problems, unanswered
        _, text = words((kept,))
        await self.recorder.record(body, "Warning", "WorkspaceNotGrown", text)
        return (*around.problems, kept), unanswered

    async def _act(self, step: Step, deed: Deed, now: datetime) -> Step:
        """Carry out a step, or keep an attempt after the first from starting beside too many."""
        if not isinstance(step, StartAttempt) or step.attempt.number == 1:
            return await act(self.kube, step, deed)
        uid, done = deed.accepted.job.uid, None
        if not self._restarts.take(uid, self.restarts_at_once, now):
            text = f"{self._restarts.taken} other jobs are starting again"
            return Wait(None, "Recovering", "WaitingForOtherRestarts", text)
        try:
            done = await act(self.kube, step, deed)
        finally:
            if done is not step:
                self._restarts.leave(uid)
        return done

    def _follow(self, key: Key, deed: Deed, status: JobStatus, done: Step) -> None:
        """Ask for the progress of an attempt that runs, and let go of what is over."""
        uid = deed.accepted.job.uid
        if not isinstance(done, StartAttempt) and not starts(deed.observed.child(status.child)):
            self._restarts.leave(uid)
        source = self.observer.source(key, deed.accepted, status, deed.around, deed.observed)
        if source is not None:
            self.puller.want(source)
        else:
            self.puller.leave(uid)
        if status.outcome is not None:
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
        if at is not None and at <= now:
            # What was due then was done by this look, or cannot be: nothing new comes at once.
            at, longest = None, longest or self.progress_seconds
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
            self._restarts.leave(known)
            self.settled.pop(key, None)
            self.unaccepted.discard(key)
        # Pods that go after their job tell of it when it is known no more.
        self.observer.seen.forget_others(key, uid)
        if uid:
            self._uids[key] = uid
        else:
            self._uids.pop(key, None)
            self._written.pop(key, None)


def starts(child: ChildState | None) -> bool:
    """Tell whether a child is on its way to run, with nothing in it."""
    if child is None or child.ran or child.over or child.ends or child.stopped_at is not None:
        return False
    return child.active_since is not None and child.waiting is None


def does_something(step: Step) -> bool:
    """Tell whether a step changes anything but the job's status."""
    return not isinstance(step, Wait | Finish) or (isinstance(step, Finish) and step.expired)


def _first(error: ValidationError) -> str:
    wrong = error.errors()[0]
    return f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"[:512]
