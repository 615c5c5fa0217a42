"""The executor of this machine, with real processes and a scripted trainer."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api.names import Layout
from finetune_cli.run.record import Record, read_record
from harness import local_driver
from harness.ledger_checks import check_ledger
from harness.scenarios import DONE, SCENARIOS, Expected, Scenario, Try
from harness.simulation import make_choices

LOCAL = [scenario for scenario in SCENARIOS if scenario.local]


@dataclass
class Runner:
    """A process that runs ``finetune run``'s executor."""

    pid: int
    out: Path

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def until_said(self, text: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.out.read_text():
            assert time.monotonic() < deadline, self.out.read_text()
            time.sleep(0.05)

    def wait(self, seconds: float = 60) -> tuple[int, str]:
        """Return its exit code (negative: the signal) and what it printed."""
        until = time.monotonic() + seconds
        while True:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status), self.out.read_text()
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"it does not end: {self.out.read_text()}")
            time.sleep(0.01)


class Job:
    """A job's folder, its script, and the processes that run it."""

    def __init__(self, root: Path, scenario: Scenario, **more: Any) -> None:
        self.root = root
        self.scenario = scenario
        self.layout = Layout(root / "tiny")
        self.layout.root.mkdir()
        (root / "memory.events").write_text("oom_kill 0\n")
        self.waiting = root / "waiting"
        choices = make_choices(micro_batch_chosen=scenario.micro_batch_chosen)
        script = {
            stage: [{**asdict(line), **more.get(stage, {})} for line in getattr(scenario, stage)]
            for stage in ("prepare", "train", "publish")
        }
        script |= {
            "choices": choices.to_json(),
            "memory_events": str(root / "memory.events"),
            "waiting": str(self.waiting),
        }
        (root / "script.json").write_text(json.dumps(script))

    def let_first_attempt_wait(self) -> None:
        """Let its process go on until it is told to end."""
        script = json.loads((self.root / "script.json").read_text())
        script["train"][0]["wait_for_sigterm"] = True
        (self.root / "script.json").write_text(json.dumps(script))

    def start(self, die_at: int = 0, when: str = "") -> Runner:
        """Run the job in a process of its own: a fork, which has everything imported already."""
        out = self.root / f"out-{len(list(self.root.glob('out-*')))}.txt"
        pid = os.fork()
        if pid == 0:
            code = 99
            os.environ["FINETUNE_SCRIPT"] = str(self.root / "script.json")
            os.environ["TMPDIR"] = str(self.root)  # a keeper that is killed leaves its folder
            try:
                with out.open("w") as stream:
                    sys.stdout = sys.stderr = stream
                    folder = self.layout.root
                    code = 0 if local_driver.run(folder, self.scenario.spec, die_at, when) else 3
            except BaseException:
                with out.open("a") as stream:
                    stream.write(traceback.format_exc())
            finally:
                os._exit(code)
        return Runner(pid, out)

    def run(self, die_at: int = 0, when: str = "") -> tuple[int, str]:
        return self.start(die_at, when).wait()

    def record(self) -> Record:
        return read_record(self.layout.status)

    def micro_batches(self) -> list[int]:
        """Of the attempts, from the configurations that the processes were started with."""
        folder = self.layout.reports / "processes"
        configs = [json.loads(f.read_text()) for f in folder.glob("tiny-*.config.json")]
        tries = [c["attempt"] for c in configs if c["stage"] == "train"]
        return [a["microBatchSize"] for a in sorted(tries, key=lambda a: a["number"])]

    def wait_until_waiting(self) -> int:
        until = time.monotonic() + 30
        while not self.waiting.is_file() or not self.waiting.read_text():
            assert time.monotonic() < until
            time.sleep(0.01)
        return int(self.waiting.read_text())

    def starts(self) -> dict[str, int]:
        """How often each child was really started."""
        folder = self.layout.reports / "processes"
        counts: dict[str, int] = {}
        for file in folder.glob("*-0.pid.json"):
            name = re.sub(r"-[0-9a-f]{8}-0\.pid\.json$", "", file.name)
            counts[name] = counts.get(name, 0) + 1
        return counts


@pytest.mark.parametrize("scenario", LOCAL, ids=lambda s: s.name)
def test_scenario(scenario: Scenario, tmp_path: Path) -> None:
    job = Job(tmp_path, scenario)
    code, out = job.run()
    assert code == 0, out
    check_ledger(scenario, job.record().status, job.micro_batches())


KILLED = Scenario(
    "exits 1, is killed, and goes on",
    train=(Try((1,), step=12, checkpoint=10), Try((137,), step=25, checkpoint=20), DONE),
    expected=Expected(
        "Succeeded",
        attempt=3,
        failures=2,
        causes=("Crashed", "Crashed"),
        from_steps=(10, 20),
        lost_steps=(2, 5),
        failure="Crashed",
        exit_code=137,
        code="crashed",
        micro_batches=(4, 4, 4),
    ),
)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killing_the_runner_at_any_write_changes_nothing(when: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    code, out = (job := Job(whole, KILLED)).run()
    assert code == 0, out
    check_ledger(KILLED, job.record().status, job.micro_batches())
    writes = int(re.findall(r"writes (\d+)", out)[0])
    assert writes >= 15
    for die_at in range(1, writes + 1):
        root = tmp_path / str(die_at)
        root.mkdir()
        job = Job(root, KILLED)
        code, out = job.run(die_at, when)
        if code != 0:  # a run may see two things at one look, and so write less often
            assert code == -signal.SIGKILL, out
            code, out = job.run()
        assert code == 0, out
        check_ledger(KILLED, job.record().status, job.micro_batches())
        names = ("tiny-prepare", "tiny-1", "tiny-2", "tiny-3", "tiny-publish")
        assert job.starts() == dict.fromkeys(names, 1), f"write {die_at}"


def test_interrupt_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    lines = (Try((143,), step=31, checkpoint=31), DONE)
    scenario = Scenario("stopped", Expected("Succeeded", 2), train=lines)
    job = Job(tmp_path, scenario)
    job.let_first_attempt_wait()
    runner = job.start()
    job.wait_until_waiting()
    runner.send(signal.SIGINT)
    code, out = runner.wait()
    assert code == 3, out
    assert "stopping: the processes save what they have (at most 120 s)" in out
    status = job.record().status
    assert (status.phase, status.attempt, status.failures, status.preemptions) == (
        "Suspended",
        2,
        0,
        0,
    )
    assert status.checkpoint is not None
    assert status.checkpoint.step == 31
    assert status.last_failure is None
    code, out = job.run()
    assert code == 0, out
    status = job.record().status
    assert (status.outcome, status.attempt) == ("Succeeded", 2)
    assert [(r.cause, r.from_step, r.lost_steps) for r in status.resumes] == [("Stopped", 31, 0)]


def test_second_interrupt_says_that_it_saves_and_third_kills(tmp_path: Path) -> None:
    scenario = Scenario("stubborn", Expected("Succeeded", 2), train=(Try((143,), step=31), DONE))
    job = Job(tmp_path, scenario, train={"wait_for_sigterm": True, "saves_for": 50})
    runner = job.start()
    pid = job.wait_until_waiting()
    for answer in ("stopping: ", "still saving"):
        runner.send(signal.SIGINT)
        runner.until_said(answer)  # two that wait at the same time are one
    runner.send(signal.SIGINT)
    code, out = runner.wait()
    assert code == 3, out
    assert "still saving; once more ends the processes at once" in out
    assert "ending the processes at once" in out.splitlines()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert job.record().status.failures == 0


def test_killed_runner_finds_its_process_again(tmp_path: Path) -> None:
    scenario = Scenario("orphan", Expected("Succeeded", 1))
    job = Job(tmp_path, scenario, train={"wait_for_sigterm": True})
    runner = job.start()
    pid = job.wait_until_waiting()
    runner.send(signal.SIGKILL)
    runner.wait()
    os.kill(pid, 0)  # it goes on by itself
    second = job.start()
    time.sleep(1.0)
    assert job.starts()["tiny-1"] == 1
    os.kill(pid, signal.SIGTERM)
    code, out = second.wait()
    assert code == 0, out
    status = job.record().status
    assert (status.outcome, status.attempt, status.preemptions) == ("Succeeded", 1, 0)


def test_everything_lost_is_infrastructure(tmp_path: Path) -> None:
    lines = (Try((0,), step=9, checkpoint=9), DONE)
    scenario = Scenario("lost", Expected("Succeeded", 2), train=lines)
    job = Job(tmp_path, scenario)
    job.let_first_attempt_wait()
    runner = job.start()
    pid = job.wait_until_waiting()
    keeper = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    runner.send(signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    runner.wait()
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}/cmdline").is_file() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < until, "the process outlives its keeper"
        time.sleep(0.01)
    code, out = job.run()
    assert code == 0, out
    status = job.record().status
    assert (status.outcome, status.attempt, status.preemptions) == ("Succeeded", 2, 1)
    assert status.last_failure is not None
    assert status.last_failure.class_ == "LostInfrastructure"
