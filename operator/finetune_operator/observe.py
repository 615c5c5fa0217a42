"""What can be seen of a job in the cluster: children and pods, its volume, its progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from finetune_api.names import LABEL_STAGE, LABEL_UID
from finetune_api.problem import Problem
from finetune_api.resolved import ResolvedJob, StageConfig
from finetune_api.status import Child, JobStatus
from finetune_operator.acceptance import Acceptance, Accepted
from finetune_operator.backend import (
    BACKENDS,
    CPU_STAGES,
    Backend,
    attempt,
    choose,
    prepare_or_publish,
)
from finetune_operator.endings import container_status
from finetune_operator.gang import members
from finetune_operator.hindrances import Hindrances
from finetune_operator.kube import (
    BATCH_JOBS,
    CLAIMS,
    PODS,
    PYTORCH_JOBS,
    Kube,
    KubeError,
    Object,
    Resource,
    is_ending,
    owner_of,
    uid_of,
)
from finetune_operator.last_seen import LastSeen
from finetune_operator.observed import ChildState, Kinds, Observed, Waiting, WorkspaceState
from finetune_operator.ownership import owned_by, with_owner
from finetune_operator.progress import Puller, Source
from finetune_operator.queue import Key
from finetune_operator.remains import MOST_ASKED, gone_children, unlisted
from finetune_operator.render.claims import claim_of
from finetune_operator.render.workspace import made_by_us, shared, workspace
from finetune_operator.resolve.paths import look
from finetune_operator.said import claim_said, prepared_by, published_by, reports_of
from finetune_operator.workspace_folders import earlier

_FRESH_CLAIM = 5.0
"""Seconds for which a bound claim that jobs share is taken to be there: they come in numbers."""


@dataclass(frozen=True)
class Around:
    """The objects behind what was observed, as they were read."""

    backend: Backend | None
    """None: the cluster has not what the job names."""
    children: tuple[Object, ...] = ()
    there: frozenset[str] = frozenset()
    """The uids of all Jobs and PyTorchJobs with the job's label, whoever owns them."""
    pods: tuple[Object, ...] = ()
    claim: Object | None = None
    """Of the job's folder, as it was read."""
    workspace_to_make: Object | None = None
    old_folders: tuple[str, ...] = ()
    """The folders of earlier jobs in the claim that is used again, the newest first."""
    problems: tuple[Problem, ...] = ()
    """Changes of the object that do not count."""

    def orphans(self, child: str) -> list[Object]:
        """Return the pods of a child whose own object is gone."""
        owners = ((pod, owner_of(pod)) for pod in self.pods)
        return [
            pod
            for pod, owner in owners
            if owner.get("name") == child and owner.get("uid") not in self.there
        ]


@dataclass
class Observer:
    """Looks at one job after another; what it keeps between looks can be lost."""

    kube: Kube
    acceptance: Acceptance
    seen: LastSeen
    puller: Puller
    hindrances: Hindrances = field(init=False)
    _claims: dict[tuple[str, str], tuple[float, Object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read nothing yet."""
        self.hindrances = Hindrances(self.kube)

    async def observe(
        self, body: Object, accepted: Accepted, status: JobStatus
    ) -> tuple[Around, Observed]:
        """Return everything that the planner wants to know, and the objects behind it.

        Children are read before their pods: what a child says of its end is never newer than what
        is seen of the pods. The ledger names a child before it is made, so that a job whose ledger
        has named none yet has neither, unless somebody took the ledger away.
        """
        job = accepted.job
        live, problems = await self.acceptance.live(body, accepted)
        pytorch = await self.kube.serves(PYTORCH_JOBS)
        available = ["PyTorchJob", "Job"] if pytorch else ["Job"]
        wanted = job.spec.backend or status.backend or None
        backend = choose(wanted, available)
        anew = accepted.was_there
        begun = anew or status.child is not None or status.attempt > 0 or status.tries > 0
        kinds = [BATCH_JOBS] if begun else []
        kinds += [PYTORCH_JOBS] if pytorch and (anew or status.attempt > 0) else []
        key = Key(job.namespace, job.name)
        known = self.seen.of_job(key, job.uid)
        if _is_first(status, anew) and _has_succeeded(status.child, known):
            # How it ended is known, and what it was made of no longer matters: training may begin.
            kinds = []
        (listed, pods), (space, around) = await asyncio.gather(
            self._children_and_pods(kinds, job, self._since(body), first=_is_first(status, anew)),
            self._workspace(accepted, status),
        )
        # The ledger's child is that whoever owns it: its pods run on without its owner's name.
        own = status.child.uid if status.child is not None else ""
        children = [
            one
            for one in listed
            if owner_of(one).get("uid") == job.uid or (own and uid_of(one) == own)
        ]
        there = frozenset(map(uid_of, listed))
        exist = {uid_of(pod) for pod in pods}
        gone = [pod for pod in self.seen.of_job(key, job.uid) if uid_of(pod) not in exist]
        pods = [with_owner(pod, children, status.child) for pod in pods]
        gone = [with_owner(pod, children, status.child) for pod in gone]
        states = [
            await self._state(child, pods, gone, status, job.spec.resources.nodes)
            for child in children
        ]
        states += gone_children(job.name, there, pods, gone, status, job.spec.resources.nodes)
        if backend is None:
            space = replace(space, problem=_no_backend(str(wanted)))
        reports = reports_of(states, status.child)
        report = prepared_by(job.uid, states)
        found = Observed(
            live=live,
            children=tuple(states),
            report=report,
            choices=status.choices or (report.choices if report else None),
            progress=self.puller.known(job.uid),
            claim=claim_said(job.uid, status, reports, self.puller),
            published=published_by(accepted, status, states),
            workspace=space,
            kinds=Kinds("Job", backend.kind if backend else str(wanted), "Job"),
        )
        seen = replace(
            around,
            backend=backend,
            children=tuple(children),
            there=there,
            pods=tuple(pods),
            problems=problems,
        )
        return seen, found

    async def render(
        self,
        accepted: Accepted,
        around: Around,
        config: StageConfig,
        child: Child,
        number: int,
    ) -> tuple[Object, ...]:
        """Return what a child is made of, in the order in which to make it, the child last."""
        placement = await self.acceptance.placement(accepted)
        if config.stage != "train":
            return prepare_or_publish(config, child.name, number, placement)
        backend = around.backend or CPU_STAGES
        return attempt(BACKENDS.get(child.kind, backend), config, child.name, placement)

    def source(
        self, key: Key, accepted: Accepted, status: JobStatus, around: Around, seen: Observed
    ) -> Source | None:
        """Return where the progress of the attempt that runs is read; None where none does."""
        child = seen.child(status.child)
        if status.trained or not status.prepared or child is None or child.over:
            return None
        first = [one for one in members(child.uid, around.pods) if one.index == 0 and one.runs]
        address = look(first[-1].pod, "status", "podIP") if first else None
        if not isinstance(address, str) or not address:
            return None
        container = container_status(first[-1].pod).get("name")
        return Source(
            key,
            accepted.job.uid,
            status.attempt,
            address,
            pod=str(look(first[-1].pod, "metadata", "name") or ""),
            container=container if isinstance(container, str) else "",
        )

    def _since(self, body: Object) -> int | None:
        """Return the version that a look at a job must not be behind.

        That of the job itself, because its ledger is read with what it tells of, and the newest
        that a watch has told of, because nobody tells twice. None: versions cannot be compared.
        """
        version = str(body["metadata"].get("resourceVersion") or "")
        return max(int(version), self.seen.newest(uid_of(body))) if version.isdecimal() else None

    async def _children_and_pods(
        self,
        kinds: Sequence[Resource],
        job: ResolvedJob,
        since: int | None,
        *,
        first: bool = False,
    ) -> tuple[list[Object], list[Object]]:
        """Return what has the label of a job: its children, what others made of them, and pods.

        Children may be as old as ``since``, which the API server answers from its memory; pods are
        never older than a child. Before the ``first`` attempt that is all that is asked of them;
        later, where an old gang may still live, they are the newest that there are.
        """
        if not kinds:
            return [], []
        selector, namespace = f"{LABEL_UID}={job.uid}", job.namespace
        lists = await asyncio.gather(
            *(self.kube.listed(kind, namespace, selector, since=since) for kind in kinds)
        )
        versions = [found.version for found in lists if found.version is not None]
        comparable = first and since is not None and len(versions) == len(lists)
        pods = await self.kube.listed(
            PODS, namespace, selector, since=max((since or 0, *versions)) if comparable else None
        )
        listed = [body for found in lists for body in found.items]
        others = unlisted(job.name, pods.items, set(map(uid_of, listed)))
        if since is not None and others:
            # A child that was made after that version, and has pods already.
            return await self._children_and_pods(kinds, job, None, first=first)
        for resource, name, uid in others[:MOST_ASKED]:
            # One that has lost its label, or was made of our pods by somebody else, is not gone.
            found = await self.kube.find(resource, namespace, name)
            listed += [found] if found is not None and uid_of(found) == uid else []
        return listed, pods.items

    async def _state(
        self,
        child: Object,
        pods: Sequence[Object],
        gone: Sequence[Object],
        status: JobStatus,
        nodes: int,
    ) -> ChildState:
        backend = BACKENDS.get(child["kind"], CPU_STAGES)
        # What a child says of its size may have been edited; how it was made never changes.
        trains = (child["metadata"].get("labels") or {}).get(LABEL_STAGE) == "train"
        processes = nodes if trains else 1
        state = backend.read(child, pods, gone, processes=processes)
        is_current = status.child is not None and status.child.name == state.name
        if state.over or state.ran or not is_current or is_ending(child):
            return state
        # It does not run yet: what keeps its pods from being made, and their volumes and secrets
        # from being mounted, stands in Events alone.
        try:
            events = await self.hindrances.of(child["metadata"]["namespace"])
        except KubeError:  # Events may have a store of their own, which nothing here must wait for
            return state
        return backend.read(child, pods, gone, events, processes)

    async def _workspace(
        self, accepted: Accepted, status: JobStatus
    ) -> tuple[WorkspaceState, Around]:
        """Look at the claim of the job's folder."""
        job = accepted.job
        name = claim_of(job)
        to_make = workspace(job)
        found = await self._claim(job.namespace, name, ours=to_make is not None)
        around = Around(None, claim=found)
        if found is None:
            if to_make is not None and not status.prepared:
                several = job.spec.resources.nodes > 1
                return WorkspaceState(shared=several), replace(around, workspace_to_make=to_make)
            text = f"claim {name} does not exist"
            text += "; create it" if to_make is None else ": what was prepared and saved is gone"
            return WorkspaceState(problem=Waiting("WorkspaceMissing", text)), around
        several = shared(found)
        problem = workspace_problem(found, job.uid, made=to_make is not None)
        if problem is None and job.spec.resources.nodes > 1 and not several:
            text = (
                f"claim {name} can be used by one node only, and resources.nodes is"
                f" {job.spec.resources.nodes}; name a claim with ReadWriteMany"
            )
            problem = Waiting("WorkspaceNotShared", text)
        if to_make is not None:
            around = replace(around, old_folders=earlier(found, job.name, job.uid))
        return WorkspaceState(shared=several, problem=problem), around

    async def _claim(self, namespace: str, name: str, *, ours: bool) -> Object | None:
        """Read a claim; one of somebody else's, which is bound, may have been read just before."""
        key, now = (namespace, name), time.monotonic()
        until, found = self._claims.get(key, (float("-inf"), None))
        if found is not None and not ours and now < until:
            return found
        found = await self.kube.find(CLAIMS, namespace, name)
        bound = found is not None and look(found, "status", "phase") == "Bound"
        if found is not None and bound and not ours and not is_ending(found):
            self._claims = {one: it for one, it in self._claims.items() if it[0] > now}
            self._claims[key] = (now + _FRESH_CLAIM, found)
        return found


def workspace_problem(claim: Object, uid: str, *, made: bool) -> Waiting | None:
    """Return why a claim that exists cannot be used; None when it can.

    ``made``: it is one that we make. Such a claim is used again with our label and without a live
    owner: its name is the job's, so whoever it was made for is gone.
    """
    name = claim["metadata"]["name"]
    if is_ending(claim):
        return Waiting("WorkspaceEnding", f"claim {name} is being removed")
    if (claim.get("status") or {}).get("phase") == "Lost":
        return Waiting("WorkspaceLost", f"the volume of claim {name} does not exist any more")
    if not made:
        return None
    if not made_by_us(claim):
        text = f"claim {name} exists and was not made for a job; name it in workspace.claimName"
        return Waiting("WorkspaceTaken", f"{text}, or remove it")
    if owner_of(claim) and not owned_by(claim, uid):
        return Waiting("WorkspaceEnding", f"claim {name} goes with the job that it was made for")
    return None


def _no_backend(wanted: str) -> Waiting:
    return Waiting(
        "BackendMissing",
        f"this cluster has no {wanted}; install it, or leave spec.backend out",
    )


def _is_first(status: JobStatus, anew: bool) -> bool:
    """Tell whether nothing has ever run for a job but its first preparation."""
    return not anew and status.attempt == 0 and status.tries <= 1


def _has_succeeded(child: Child | None, gone: Sequence[Object]) -> bool:
    """Tell whether the one pod of the ledger's child is known to have ended with success."""
    return any(
        child is not None
        and bool(child.uid)
        and owner_of(pod).get("uid") == child.uid
        and look(pod, "status", "phase") == "Succeeded"
        for pod in gone
    )
