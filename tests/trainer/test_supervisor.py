"""The supervisor as a process of its own: several nodes, PID 1, ends that are merged."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from finetune_api.names import MANIFEST, Layout
from finetune_api.problem import Problem
from finetune_api.reports import TerminationReport
from finetune_trainer import supervisor
from harness.prepared_job import prepared_job, values
from harness.stage_config import write_config

PROBLEM = Problem(code="out-of-memory", message="out of memory", fix="less")


def report(code: int, **more: Any) -> TerminationReport:
    return TerminationReport(stage="train", job_uid="u", attempt=1, exit_code=code, **more)


def test_the_end_names_the_cause_and_the_facts_of_the_first_rank(tmp_path: Path) -> None:
    config = prepared_job(tmp_path, ranks=2)
    ranks = supervisor.Ranks(
        (143, 12),
        (
            report(143, message="asked to stop", step=7, claim=3, peak_memory_bytes=10),
            report(12, message="out of memory", problems=(PROBLEM,), peak_memory_bytes=20),
        ),
    )
    end = supervisor._merged(config, ranks, 1, asked=False)
    assert (end.exit_code, end.message, end.problems) == (12, "out of memory", (PROBLEM,))
    assert (end.step, end.claim, end.node, end.peak_memory_bytes) == (7, 3, 1, 20)
    left = Layout(Path(config.mounts.workspace)).end_report(3, 1)
    assert TerminationReport.model_validate_json(left.read_bytes()) == end


def test_ranks_that_were_killed_leave_no_word(tmp_path: Path) -> None:
    config = prepared_job(tmp_path, ranks=2)
    end = supervisor._merged(config, supervisor.Ranks((137,), ()), 0, asked=False)
    assert (end.exit_code, end.job_uid, end.attempt) == (137, config.job.uid, 1)
    assert end.message.startswith("a rank was killed (SIGKILL)")


def test_a_rank_that_hung_or_was_aborted_leaves_no_word_either(tmp_path: Path) -> None:
    config = prepared_job(tmp_path, ranks=2)
    end = supervisor._merged(config, supervisor.Ranks((20,), ()), 0, asked=False)
    assert end.exit_code == 20
    assert end.message.startswith("a rank hung, or NCCL aborted it")


def test_a_node_that_was_asked_to_stop_was_not_cut_off(tmp_path: Path) -> None:
    config = prepared_job(tmp_path, ranks=2)
    ranks = supervisor.Ranks((20,), (report(20, message="a rank lost the others"),))
    assert supervisor._merged(config, ranks, 0, asked=True).exit_code == 143
    assert supervisor._merged(config, ranks, 0, asked=False).exit_code == 20


def test_pid_1_reaps_passes_signals_on_and_keeps_the_exit_code(tmp_path: Path) -> None:
    """Run as PID 1 of a PID namespace, with an orphan that ends before the child does."""
    code = f"""
import json, os, sys, time, signal
from finetune_trainer.start import become_init
assert os.getpid() == 1
become_init()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
gate, opened = os.pipe()
over, held = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.close(opened)
        os.read(gate, 1)  # until its parent is gone
        os.write(held, str(os.getppid()).encode())
        os._exit(0)
    os._exit(0)
os.wait()
os.close(opened)
os.close(held)
parent = os.read(over, 9).decode()
assert os.read(over, 9) == b""  # nobody holds it any more: the orphan has ended
limit = time.monotonic() + 30
while True:
    left = sorted(int(pid) for pid in os.listdir("/proc") if pid.isdigit())
    if left == [1, os.getpid()] or time.monotonic() > limit:
        break
    time.sleep(0.02)
file = {str(tmp_path / "found")!r}
with open(file + ".new", "w") as stream:
    json.dump([parent, len(left)], stream)
os.rename(file + ".new", file)
time.sleep(60)
"""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us make a PID namespace")
    process = subprocess.Popen([*unshare, sys.executable, "-c", code])
    try:
        wait_for((tmp_path / "found").exists, process)
        # The orphan's parent, and how many processes there are: PID 1 and its child.
        assert json.loads((tmp_path / "found").read_text()) == ["1", 2]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    finally:
        process.kill()
        process.wait()


def wait_for(happened: Any, process: subprocess.Popen[Any], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < end
        time.sleep(0.05)


def start(config: Any, file: Path, node: int, port: int, log: Path) -> subprocess.Popen[Any]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "FINETUNE_NODE_RANK": str(node),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "FINETUNE_TERMINATION_LOG": str(log.with_suffix(".json")),
        "FINETUNE_TRACE_SAMPLES": "1",
        "TMPDIR": str(log.parent),
    }
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer.main", "train", "--config", str(file),
             "--config-digest", config.digest],
            env=environment, stdout=stream, stderr=stream,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_and_a_signal_to_one_of_them(tmp_path: Path) -> None:
    """The other node's rank learns of it by the agreement: both save the same step, both end 143."""
    config = prepared_job(tmp_path, micro_batch=1, steps=100_000, validation=0)
    assert config.attempt is not None
    config = config.model_copy(update={"attempt": config.attempt.model_copy(update={"nodes": 2})})
    file = write_config(config, tmp_path / "attempt.json")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = [start(config, file, node, port, tmp_path / f"node-{node}.log") for node in (0, 1)]
    layout = Layout(Path(config.mounts.workspace))
    try:
        wait_for(lambda: layout.metrics.exists() and len(values(config, "samples")) > 2, nodes[0])
        nodes[1].send_signal(signal.SIGTERM)
        codes = [node.wait(timeout=120) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    text = "\n".join((tmp_path / f"node-{node}.log").read_text()[-2000:] for node in (0, 1))
    assert codes == [143, 143], text
    ends = [json.loads((tmp_path / f"node-{node}.json").read_text()) for node in (0, 1)]
    assert ends[0]["step"] == ends[1]["step"] == max(values(config, "samples"))
    assert [end["node"] for end in ends] == [0, 1]
    manifest = json.loads((layout.checkpoint(1, ends[0]["step"]) / MANIFEST).read_text())
    assert (manifest["reason"], manifest["worldSize"]) == ("signal", 2)
    assert layout.end_report(1, 0).exists()
    assert layout.end_report(1, 1).exists()
    assert not list(tmp_path.glob("finetune-ends-*"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_signal_while_it_loads(tmp_path: Path) -> None:
    config = prepared_job(tmp_path)
    file = write_config(config, tmp_path / "attempt.json")
    process = start(config, file, 0, 0, tmp_path / "out.log")
    try:
        wait_for(lambda: list(tmp_path.glob("finetune-ends-*/0.pid")), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 143, (tmp_path / "out.log").read_text()
    finally:
        process.kill()
        process.wait()
    layout = Layout(Path(config.mounts.workspace))
    assert not list(layout.checkpoints.glob("*/step-*"))
    assert json.loads((tmp_path / "out.json").read_text())["exitCode"] == 143
