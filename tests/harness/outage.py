"""Two minutes in which the operator cannot reach the API server, while its jobs' lives go on."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.api_proxy import ApiProxy
from harness.control_plane import ControlPlane
from harness.jobs import Jobs, playing
from harness.operator_driver import make_namespace, operator, operator_token, wait_for
from harness.played_runs import Run
from harness.pod_player import PodPlayer
from harness.processes import Process, free_port

SECONDS = 120.0
BACKEND = "Job"
"""Asked for by name: another test on this control plane may install PyTorchJob meanwhile."""
RUNNING = ("ends", "fails", "fades", "halts")


@dataclass
class Outage:
    """Runs in a thread, so that other tests can go on meanwhile."""

    plane: ControlPlane
    folder: Path
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of each job at the end."""
    made: list[str] = field(default_factory=list)
    """Pods, in the order in which they were made."""
    most_alive: dict[str, int] = field(default_factory=dict)
    away: float = 0.0
    """Seconds that the API server was away."""
    back: float = 0.0
    """Seconds from its return until every job had ended."""
    written: list[str] = field(default_factory=list)
    """Writes that reached the API server while it was away."""
    health: tuple[int, int] = (0, 0)
    """What /healthz and /readyz answered at the end of the outage."""
    _error: BaseException | None = None
    _thread: threading.Thread | None = None
    _over: threading.Event = field(default_factory=threading.Event)

    def begin(self) -> Outage:
        """Begin, unless it was begun before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._guarded, daemon=True)
            self._thread.start()
        return self

    def finish(self) -> Outage:
        """Wait for its end; raises what went wrong."""
        thread = self.begin()._thread
        assert thread is not None
        thread.join(SECONDS + 240)
        if self._error is not None:
            raise self._error
        assert not thread.is_alive()
        return self

    def abandon(self) -> None:
        """End it where nobody waits for it; returns when nothing of it runs any more."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(60)

    def _until(self, what: Callable[[], Any], process: Process | None = None) -> None:
        def going_on() -> Any:
            if self._over.is_set():
                raise InterruptedError
            return what()

        wait_for(going_on, process, 120)

    def _pause(self, seconds: float) -> None:
        if self._over.wait(max(0.0, seconds)):
            raise InterruptedError

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._error = error

    def _run(self) -> None:
        api = self.plane.api
        jobs = Jobs(api, make_namespace(api, "two-minutes-away"))
        held = dict.fromkeys(RUNNING, True)

        def script(name: str) -> Callable[[str, int, int], Run]:
            def run(stage: str, attempt: int, node: int) -> Run:
                del node
                first = stage == "train" and attempt == 1
                if first and not held.get(name) and name == "fails":
                    return Run(exit_code=20, step=50, checkpoint=40)
                return Run(forever=first and held.get(name, False))

            return run

        player = PodPlayer(
            api, jobs.namespace, scripts={name: script(name) for name in (*RUNNING, "comes")}
        )
        proxy = ApiProxy(api, self.folder, operator_token(api, jobs.namespace))
        port = free_port()
        log = self.folder / "operator.log"
        flags = ["--unreachable-seconds", "1", "--probe-port", str(port)]
        try:
            with (
                playing(player),
                operator(proxy.kubeconfig, jobs.namespace, log, *flags) as process,
            ):
                for name in RUNNING:
                    jobs.submit(name, backend=BACKEND)
                for name in RUNNING:
                    self._until(lambda name=name: jobs.phase(name) == "Running", process)
                self._be_away(jobs, player, proxy, held, port)
                began = time.monotonic()
                for name in (*RUNNING, "comes"):
                    self._until(lambda name=name: jobs.outcome(name), process)
                self.back = time.monotonic() - began
                assert not process.ended(), process.tail()
        finally:
            proxy.stop()
        self.statuses = {name: jobs.status(name) for name in (*RUNNING, "comes")}
        self.made, self.most_alive = player.made, player.most_alive

    def _be_away(
        self, jobs: Jobs, player: PodPlayer, proxy: ApiProxy, held: dict[str, bool], port: int
    ) -> None:
        """A job ends, one fails, the pod of one goes without a trace, one is to be suspended."""
        began = time.monotonic()
        proxy.away = True
        self._pause(SECONDS / 8)  # what was on its way has come
        before = len(proxy.passed)
        self._pause(SECONDS / 8)
        held["ends"] = held["fails"] = False
        player.preempt("fades-1-0-abcde")
        jobs.change("finetunejobs", "halts", {"spec": {"suspend": True}})
        jobs.submit("comes", backend=BACKEND)
        self._until(lambda: jobs.find("jobs", "ends-1")["status"].get("completionTime"))  # type: ignore[index]
        self._until(lambda: jobs.find("jobs", "fails-1")["status"].get("failed"))  # type: ignore[index]
        self._until(lambda: jobs.find("pods", "fades-1-0-abcde") is None)
        self._pause(SECONDS / 4)
        jobs.change("finetunejobs", "halts", {"spec": {"suspend": False}})
        held["halts"] = False
        self._pause(SECONDS - (time.monotonic() - began))
        self.health = (_code(port, "/healthz"), _code(port, "/readyz"))
        self.written = proxy.passed[before:]
        self.away = time.monotonic() - began
        proxy.away = False


def _code(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
