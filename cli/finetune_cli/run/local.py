"""The executor of this machine: looks, writes the ledger, then starts or stops processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import gettempdir
from types import FrameType
from typing import Protocol

from finetune_api.names import Layout
from finetune_api.reports import Progress
from finetune_api.resolved import Attempt, Mounts, Stage, StageConfig
from finetune_api.status import Child, Ledger
from finetune_cli.run import keeper
from finetune_cli.run.log_files import log_path
from finetune_cli.run.look import never_started, observe
from finetune_cli.run.processes import Gate, alive, has_started, kill, prepare_process, terminate
from finetune_cli.run.record import LocalChild, Record, write_record
from finetune_operator.observed import Live, Observed
from finetune_operator.plan import account, plan
from finetune_operator.plan.situation import time_of
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

TRAINER = (sys.executable, "-m", "finetune_trainer.main")
_KEPT = {"TORCHINDUCTOR_CACHE_DIR": f"{gettempdir()}/torchinductor_{os.getuid()}"}
"""What a process compiles serves the next one: it must not go with its temporary files."""


class View(Protocol):
    """Shows a job to its user."""

    def show(self, record: Record, progress: Progress | None) -> None:
        """Show the newest state."""

    def say(self, line: str) -> None:
        """Show a line that stays."""


@dataclass(frozen=True)
class Pace:
    """How long this executor waits; the plan knows nothing of it."""

    look: float = 0.2
    """Seconds between two looks."""
    back_off: float = 5.0
    """A back-off of the plan is cut to this many seconds: there is no cluster to spare."""
    gang: float = 5.0
    """Seconds in which the rest of a gang may end by itself, each with its own word, before it is
    told to."""
    progress: float = 5.0
    """Seconds after which a progress that alone has changed is written."""


@dataclass
class LocalRun:
    """One ``finetune run``, holding the job's lock."""

    layout: Layout
    record: Record
    live: Live
    view: View
    pace: Pace = field(default_factory=Pace)
    trainer: Sequence[str] = TRAINER
    memory_events: Path | None = None
    written: Callable[[], None] = lambda: None
    """Called after every write of the record, before anything is acted upon."""
    interrupts: int = 0
    by_terminal: bool = True
    _last_write: float = 0.0
    _rests_since: tuple[str, float] | None = None
    _answered: int = 0

    def run(self) -> bool:
        """Go on until the job has ended or was stopped; returns whether it has ended."""
        self._settle()
        while True:
            step = self._turn()
            self._answer()
            if isinstance(step, Finish):
                return True
            if isinstance(step, Wait) and step.condition == "Suspended":
                return False
            time.sleep(self.pace.look)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C or SIGTERM: the first saves and stops, the second says so, the third kills."""
        del frame
        self.interrupts += 1
        self.by_terminal = number == signal.SIGINT

    def give_up(self) -> None:
        """End every process where the state can no longer be written down, and start none.

        They are told to save and have their grace period, as on Ctrl-C.
        """
        self.interrupts = max(self.interrupts, 1)
        kept = [kept for child in self.record.children for kept in child.kept]
        grace = self.record.resolved.spec.checkpoint.grace_period_seconds
        until = time.monotonic() + grace
        for one in kept:
            terminate(one)
        while any(map(alive, kept)) and time.monotonic() < until and self.interrupts < 3:
            self._answer()
            time.sleep(self.pace.look)
        for one in kept:
            kill(one)
        while any(map(alive, kept)):
            time.sleep(self.pace.look)
        with suppress(OSError):
            self._turn()  # what has ended may have left room for a last word

    def _answer(self) -> None:
        """Tell somebody who presses Ctrl-C what is going on."""
        if self.interrupts <= self._answered:
            return
        self._answered = self.interrupts
        grace = self.record.resolved.spec.checkpoint.grace_period_seconds
        self.view.say(
            {
                1: f"stopping: the processes save what they have (at most {grace} s)",
                2: "still saving; once more ends the processes at once, and what is not saved yet"
                " is trained again",
            }.get(self.interrupts, "ending the processes at once")
        )

    def _turn(self) -> Step:
        """Look, account, write, act."""
        seen = observe(self.record, self.layout, self._live())
        record = self.record.model_copy(update={"choices": seen.choices})
        now = datetime.now(UTC)
        ledger = account(record.resolved, record.status, seen, now)
        step = plan(record.resolved, ledger, seen, self._patience(ledger, now))
        status = derive(record.resolved, ledger, seen, step, now, record.status)
        keep = tuple(
            child
            for child, state in zip(record.children, seen.children, strict=True)
            if not state.over or (ledger.child is not None and child.name == ledger.child.name)
        )
        self._write(record.model_copy(update={"status": status, "children": keep}))
        self.view.show(self.record, seen.progress)
        self._act(step)
        self._press(seen)
        return step

    def _live(self) -> Live:
        recovery = self.live.recovery
        generation = recovery.retry_generation + self.record.retries
        return replace(
            self.live,
            suspend=self.live.suspend or self.interrupts > 0,
            recovery=recovery.model_copy(update={"retry_generation": generation}),
        )

    def _patience(self, ledger: Ledger, now: datetime) -> datetime:
        """Return the time for the plan: past a back-off that this machine has waited enough for."""
        until = time_of(ledger.not_before)
        if until is None or now >= until:
            self._rests_since = None
            return now
        if self._rests_since is None or self._rests_since[0] != ledger.not_before:
            self._rests_since = (str(ledger.not_before), time.monotonic())
        rested = time.monotonic() - self._rests_since[1]
        return until if rested >= self.pace.back_off else now

    def _write(self, record: Record) -> None:
        """Write the record where it differs; mere progress not more often than the pace allows."""
        if record == self.record and self._last_write:
            return
        soft = {"progress", "memory"}
        old, new = self.record, record
        same = (
            old.choices == new.choices
            and old.children == new.children
            and old.status.model_dump(exclude=soft) == new.status.model_dump(exclude=soft)
        )
        if same and time.monotonic() - self._last_write < self.pace.progress:
            return
        write_record(self.layout.status, record)
        self.record = record
        self._last_write = time.monotonic()
        self.written()

    def _act(self, step: Step) -> None:
        match step:
            case StartPrepare(child=child):
                self._start(child, "prepare", None)
            case StartAttempt(child=child, attempt=attempt):
                self._start(child, "train", attempt)
            case StartPublish(child=child):
                self._start(child, "publish", None)
            case Stop(child=name):
                self._stop(name)
            case _:
                pass

    def _start(self, wanted: Child, stage: Stage, attempt: Attempt | None) -> None:
        """Start the processes of a child: written down first, let go after."""
        uid = uuid.uuid4().hex
        mounts = Mounts(workspace=str(self.layout.root), volumes=self.record.volumes)
        config = StageConfig(
            stage=stage,
            job=self.record.resolved,
            mounts=mounts,
            choices=self.record.choices if stage != "prepare" else None,
            attempt=attempt,
        )
        folder = self.layout.reports / "processes"
        config_file = folder / f"{wanted.name}.config.json"
        keeper.write_whole(config_file, json.dumps(config.to_json(), indent=1).encode())
        number = attempt.number if attempt else max(1, self.record.status.tries)
        nodes = attempt.nodes if attempt else 1
        port = str(_free_port()) if nodes > 1 else ""
        argv = [*self.trainer, stage, "--config", str(config_file)]
        argv += ["--config-digest", config.digest]
        gates: list[Gate] = []
        for node in range(nodes):
            environment = {**_KEPT, **os.environ, "PYTHONUNBUFFERED": "1"}
            if nodes > 1:
                environment |= {
                    "FINETUNE_NODE_RANK": str(node),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                }
            gates.append(
                prepare_process(
                    wanted.name if nodes == 1 else f"{wanted.name}-worker-{node}",
                    node,
                    argv,
                    files=folder / f"{wanted.name}-{uid[:8]}",
                    log=log_path(self.layout.logs, stage, number, node),
                    environment=environment,
                    memory_events=self.memory_events or keeper.memory_events(),
                )
            )
        child = LocalChild(
            name=wanted.name,
            uid=uid,
            stage=stage,
            attempt=attempt.number if attempt else 0,
            kept=tuple(gate.kept for gate in gates),
            started_at=datetime.now(UTC).isoformat(),
            log=str(log_path(self.layout.logs, stage, number, 0)),
        )
        self._write(self.record.model_copy(update={"children": (*self.record.children, child)}))
        for gate in gates:
            gate.open()
        self._wait_for_start(child)

    def _settle(self) -> None:
        """After a restart: forget children whose processes were never let go."""
        kept = []
        for child in self.record.children:
            self._wait_for_start(child)
            if not never_started(child):
                kept.append(child)
        if len(kept) != len(self.record.children):
            self._write(self.record.model_copy(update={"children": tuple(kept)}))

    def _wait_for_start(self, child: LocalChild) -> None:
        """Wait until every keeper has started its process or is gone: a matter of milliseconds."""
        for kept in child.kept:
            while alive(kept) and not has_started(kept):
                time.sleep(0.01)

    def _stop(self, name: str) -> None:
        """Tell a child's processes to save and end; kill what has not done so in time."""
        for child in self.record.children:
            if child.name == name and child.stopped_at is None:
                self._change(child, stopped_at=datetime.now(UTC).isoformat())
                for kept in child.kept:
                    terminate(kept)

    def _press(self, seen: Observed) -> None:
        """End the rest of a gang that has lost a member, and kill what outlives its grace period."""
        grace = timedelta(seconds=self.record.resolved.spec.checkpoint.grace_period_seconds)
        for state in seen.children:
            if state.over:
                continue
            vanished = state.ran and state.processes > state.running + len(state.ends)
            since = state.failed_at or (datetime.min.replace(tzinfo=UTC) if vanished else None)
            if since is not None and (datetime.now(UTC) - since).total_seconds() > self.pace.gang:
                self._stop(state.name)
            late = state.stopped_at is not None and datetime.now(UTC) > state.stopped_at + grace
            if late or self.interrupts >= 3:
                self._kill(state.name)

    def _kill(self, name: str) -> None:
        for child in self.record.children:
            if child.name == name and not child.killed:
                self._change(child, killed=True)
                for kept in child.kept:
                    kill(kept)

    def _change(self, child: LocalChild, **changes: object) -> None:
        changed = child.model_copy(update=changes)
        children = tuple(changed if c.uid == child.uid else c for c in self.record.children)
        self._write(self.record.model_copy(update={"children": children}))


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
