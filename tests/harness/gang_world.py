"""Gangs of pods in a cluster where anything may be away, read as the operator reads them.

The planner decides, a few lines carry out its steps, and whatever happens comes from a test: nodes
are lost, controllers and the garbage collector sleep, pods are slow to end, there is no room. Time
is a number of seconds that only ``pass_time`` changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from finetune_api.status import Child, Ledger
from finetune_operator.backend import BACKENDS, remains
from finetune_operator.observed import ChildState, Kinds, Live, Observed, WorkspaceState
from finetune_operator.plan import account, plan
from finetune_operator.plan.situation import text_of
from finetune_operator.render.pytorch_job import INDEX_LABEL
from finetune_operator.steps import StartAttempt, Step, Stop
from harness.simulation import START, make_choices, make_job

NODES = 2
GRACE = 120
Object = dict[str, Any]


@dataclass
class Pod:
    """One pod, and what is true of it whether anybody has seen it or not."""

    child: str
    index: int
    created: int
    started: int | None = None
    told: int | None = None
    ended: int | None = None
    code: int = 0
    lost: bool = False
    """Its node is gone: its process may go on, and nobody hears of it."""
    gone: bool = False

    @property
    def lives(self) -> bool:
        return self.ended is None and not self.gone

    def object(self) -> Object:
        """Return it as the API server has it."""
        metadata: Object = {
            "name": f"{self.child}-worker-{self.index}",
            "uid": f"{self.child}-{self.index}-{self.created}",
            "creationTimestamp": at(self.created),
            "labels": {INDEX_LABEL: str(self.index)},
            "ownerReferences": [{"uid": f"uid-{self.child}", "controller": True}],
        }
        if self.told is not None:
            metadata["deletionTimestamp"] = at(self.told + GRACE)
            metadata["deletionGracePeriodSeconds"] = GRACE
        status: Object = {"phase": "Pending", "conditions": []}
        if self.started is None:
            said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            status["conditions"].append({**said, "message": "0/2 nodes are available"})
        else:
            state: Object = {"running": {"startedAt": at(self.started)}}
            status["phase"] = "Running"
            if self.ended is not None:
                times = {"startedAt": at(self.started), "finishedAt": at(self.ended)}
                state = {"terminated": {"exitCode": self.code, "reason": "Error", **times}}
                status["phase"] = "Failed"
            status["containerStatuses"] = [{"name": "pytorch", "state": state}]
        return {"metadata": metadata, "status": status}


@dataclass
class Gang:
    """A child's own object."""

    name: str
    created: int
    failed: bool = False
    deleted: int | None = None


@dataclass
class World:
    """One job that trains on two nodes of a shared volume."""

    kind: str
    shared: bool = True
    now: int = 0
    room: bool = True
    controller: bool = True
    collector: bool = True
    slow: int = 5
    """Seconds that a process takes to end after it was told."""
    gangs: dict[str, Gang] = field(default_factory=dict)
    pods: list[Pod] = field(default_factory=list)
    ledger: Ledger = field(
        default_factory=lambda: Ledger(
            attempt=1, child=Child(kind="Job", name="tiny-1"), prepared=True
        )
    )

    def __post_init__(self) -> None:
        spec = {"resources": {"nodes": NODES}, "recovery": {"maxFailures": 100}}
        self.job = make_job(spec)
        assert self.job.spec.checkpoint.grace_period_seconds == GRACE

    def of(self, name: str) -> list[Pod]:
        """The pods of one child that exist."""
        return [one for one in self.pods if one.child == name and not one.gone]

    def strangers(self) -> list[Pod]:
        """Pods that may still run of children that the ledger has left behind."""
        assert self.ledger.child is not None
        return [one for one in self.pods if one.lives and one.child != self.ledger.child.name]

    def trains(self) -> bool:
        """Tell whether a whole gang runs."""
        assert self.ledger.child is not None
        own = self.of(self.ledger.child.name)
        runs = [one for one in own if one.lives and one.started is not None and one.told is None]
        return len(runs) == NODES

    def look(self) -> Step:
        """Look, account, plan; the step is not carried out yet."""
        seen = Observed(
            live=Live.of(self.job.spec),
            children=tuple(self._states()),
            choices=make_choices(),
            workspace=WorkspaceState(shared=self.shared),
            kinds=Kinds("Job", self.kind, "Job"),
        )
        now = START + timedelta(seconds=self.now)
        self.ledger = account(self.job, self.ledger, seen, now)
        return plan(self.job, self.ledger, seen, now)

    def act(self, step: Step) -> None:
        """Carry a step out as the operator does."""
        if isinstance(step, StartAttempt):
            self.gangs[step.child.name] = Gang(step.child.name, self.now)
        elif isinstance(step, Stop):
            gang = self.gangs.get(step.child)
            if gang is None:
                self._tell(self.of(step.child))
            elif gang.deleted is None:
                gang.deleted = self.now

    def pass_time(self, seconds: int) -> None:
        """Let all that is awake in the cluster do what is due, then the time pass."""
        for _ in range(3):
            for gang in tuple(self.gangs.values()):
                self._control(gang)
            self._run()
        self.now += seconds
        self._run()

    def _control(self, gang: Gang) -> None:
        """What controller and garbage collector do with one child."""
        own = self.of(gang.name)
        if gang.deleted is not None:
            if self.collector:
                self._tell(own)
                if not own:
                    del self.gangs[gang.name]
            return
        if not self.controller:
            return
        places = {one.index for one in own}
        # One whose node is lost stays as it is, and the others go on beside it.
        left = [one for one in own if not one.lives or one.told is not None]
        gang.failed = gang.failed or not all(one.lost for one in left)
        if gang.failed:
            self._tell([one for one in own if one.lives])
            return
        for index in set(range(NODES)) - places:
            self.pods.append(Pod(gang.name, index, self.now))

    def _tell(self, pods: list[Pod]) -> None:
        for one in pods:
            one.told = self.now if one.told is None else one.told

    def _run(self) -> None:
        """What scheduler and kubelets do."""
        for one in self.pods:
            if one.gone or one.lost:
                continue
            if one.told is None and one.started is None and self.room:
                one.started = self.now
            if one.told is None:
                continue
            if one.started is None:
                one.gone = True
            elif one.lives and self.now >= one.told + min(self.slow, GRACE):
                one.ended, one.code = self.now, 143 if self.slow < GRACE else 137
            elif not one.lives:
                one.gone = True

    def _states(self) -> list[ChildState]:
        there = [one.object() for one in self.pods if not one.gone]
        left = [one.object() for one in self.pods if one.gone]
        backend = BACKENDS[self.kind]
        states = [
            backend.read(self._child(gang), there, left, processes=NODES)
            for gang in self.gangs.values()
        ]
        assert self.ledger.child is not None
        current = self.ledger.child.name
        names = {one.child for one in self.pods if not one.gone or one.child == current}
        states += [
            remains(name, f"uid-{name}", NODES, there, left)
            for name in sorted(names - set(self.gangs))
        ]
        return states

    def _child(self, gang: Gang) -> Object:
        metadata: Object = {"name": gang.name, "uid": f"uid-{gang.name}"}
        metadata["creationTimestamp"] = at(gang.created)
        if gang.deleted is not None:
            metadata["deletionTimestamp"] = at(gang.deleted)
        spec: Object = {"parallelism": NODES, "completions": NODES}
        if self.kind == "PyTorchJob":
            spec = {"pytorchReplicaSpecs": {"Worker": {"replicas": NODES}}}
        held = [{"type": "Failed", "status": "True"}] if gang.failed else []
        status = {"startTime": at(gang.created), "conditions": held}
        return {"metadata": metadata, "spec": spec, "status": status}


def at(second: int) -> str:
    """Return a time as objects have it."""
    moment: datetime = START + timedelta(seconds=second)
    return text_of(moment)
