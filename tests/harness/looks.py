"""Look after look at one job in memory: the worker, a player of pods, and a clock that is set."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_operator.acceptance import Acceptance, Profiles
from finetune_operator.events import Recorder
from finetune_operator.kube import KubeError
from finetune_operator.last_seen import LastSeen, is_worth_keeping
from finetune_operator.observe import Observer
from finetune_operator.progress import Puller
from finetune_operator.queue import Key
from finetune_operator.worker import Worker
from harness.jobs import job_object
from harness.memory_api import Crash, MemoryApi, MemoryKube
from harness.operator_driver import IMAGE, JOBS
from harness.played_runs import Run
from harness.pod_player import PodPlayer

NAMESPACE = "team"
CLAIMS = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
CHILDREN = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PROFILES = "/apis/finetune.dev/v1alpha1/finetuneprofiles"


@dataclass
class Looks:
    """One job's life, driven by hand."""

    api: MemoryApi = field(default_factory=MemoryApi)
    script: Any = lambda stage, attempt, node: Run()
    name: str = "bot"
    ahead: timedelta = timedelta()
    """How far the clock is ahead of the machine's."""
    image: str = IMAGE

    def __post_init__(self) -> None:
        self.key = Key(NAMESPACE, self.name)
        self.api.clock = self.now
        self.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        self.player = PodPlayer(
            self.api,  # type: ignore[arg-type]
            NAMESPACE,
            self.script,
            pytorch=self.api.pytorch,
            clock=self.api.time,
        )
        self.api.deleted = self._deleted
        self.restart()

    def restart(self) -> None:
        """Begin anew with a worker that remembers nothing, and whose watch has told nothing yet."""
        self.watches = False
        self.kube = MemoryKube(self.api)
        self.profiles = Profiles(self.kube)
        acceptance = Acceptance(self.kube, self.profiles, self.image)
        self.seen = LastSeen()
        self.puller = Puller(lambda key: None)
        self.puller.want = lambda source: None  # type: ignore[method-assign]
        self.worker = Worker(
            kube=self.kube,
            acceptance=acceptance,
            observer=Observer(self.kube, acceptance, self.seen, self.puller),
            puller=self.puller,
            recorder=Recorder(self.kube, "test"),
            clock=self.now,
        )

    def now(self) -> datetime:
        """Return the time, which is the same for all."""
        return datetime.now(UTC) + self.ahead

    def create(self, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
        """Create the job; ``spec`` is laid over the harness's."""
        body = job_object(self.name, labels=labels, **spec)
        return self.api.create(JOBS.format(namespace=NAMESPACE), body)

    def change(self, **spec: Any) -> None:
        """Change fields of the job's spec."""
        path = f"{JOBS.format(namespace=NAMESPACE)}/{self.name}"
        self.api.request("PATCH", path, {"spec": spec})

    @property
    def status(self) -> dict[str, Any]:
        """The status of the job; empty before it has one."""
        path = f"{JOBS.format(namespace=NAMESPACE)}/{self.name}"
        return dict(self.api.get(path).get("status") or {})

    def conditions(self) -> dict[str, tuple[str, str, str]]:
        """Return status, reason and message by type."""
        return {
            one["type"]: (one["status"], one["reason"], one.get("message", ""))
            for one in self.status.get("conditions") or ()
        }

    def look(self) -> float | None:
        """Look once, after a watch has told of what there is, from the second look on."""
        if self.watches:
            self.tell()
        self.watches = True
        return asyncio.run(self.worker.look(self.key))

    def tell(self) -> None:
        """Tell the worker what a watch would: of the job, and of pods that end."""
        for (plural, _, _), body in self.api.objects.items():
            if plural == "pods" and is_worth_keeping(body, deleted=False):
                self.seen.keep(body)
        job = self.api.objects.get(("finetunejobs", NAMESPACE, self.name))
        if job is None:
            self.worker.known.forget(self.key)
        else:
            self.worker.known.learn(job)

    def settle(self, limit: int = 30) -> float | None:
        """Look until a look has nothing more to do at once."""
        for _ in range(limit):
            wait = self.look()
            if wait is None or wait > 0:
                return wait
        raise AssertionError("it never comes to rest")

    def turn(self) -> float | None:
        """Let the operator look, then the cluster do what is due."""
        wait = self.settle()
        self.player.turn()
        return wait

    def train(self) -> None:
        """Bring the job to where it trains."""
        for _ in range(12):
            self.turn()
        self.settle()
        assert self.status["phase"] == "Running"

    def live(self, limit: int = 60) -> dict[str, Any]:
        """Go on until the job has ended; a crash is followed by a worker that remembers nothing."""
        for _ in range(limit):
            try:
                wait = self.settle()
                if self.status.get("outcome"):
                    return self.status
                before = len(self.api.writes)
                self.player.turn()
                if len(self.api.writes) == before and wait is not None:
                    self.ahead += timedelta(seconds=min(wait, 60.0))
            except Crash:
                self.restart()
            except KubeError as error:
                if error.code != 409:
                    raise
        raise AssertionError(f"the job does not end: {self.status}")

    def children(self) -> list[str]:
        """Return the names of the children that exist."""
        jobs = self.api.get(CHILDREN)["items"]
        return sorted(job["metadata"]["name"] for job in jobs)

    def _deleted(self, body: dict[str, Any]) -> None:
        if body["kind"] == "Pod":
            self.seen.keep(body)
