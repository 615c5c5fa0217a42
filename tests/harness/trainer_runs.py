"""Real training runs: a small job with prepared data, its processes, and what they leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune_api.checkpoint import CheckpointRef, Claim, FileEntry
from finetune_api.names import MANIFEST, Layout
from finetune_api.reports import DataReport, TerminationReport
from finetune_api.resolved import Attempt, Choices, StageConfig
from finetune_trainer import fetch
from finetune_trainer.checkpoint import claim as claims
from finetune_trainer.data import cache
from harness.stage_config import make_config, merged, write_config
from harness.tiny_model import make_tiny_model

FINGERPRINT = "sha256:" + "ab" * 32
SEQUENCES, STEPS, SAVE_EVERY = 24, 12, 4
"""6 steps an epoch of 4 sequences (2 ranks x 2 accumulated x 1), two epochs; saved at 4, 8, 12."""
HELD_OUT, EVALUATE_EVERY = 3, 3
"""Evaluated at 0, 3, 6, 9 and 12, on sequences that two ranks cannot share evenly."""
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"ddp": {}},
    **{f"zero-{stage}": {"ddp": None, "deepspeed": {"zeroStage": stage}} for stage in (1, 2, 3)},
}
METHODS: dict[str, dict[str, Any]] = {"lora": {}, "full": {"lora": None, "full": {}}}


@dataclass(frozen=True)
class Job:
    """A prepared job in a folder of its own."""

    root: Path
    config: StageConfig

    @property
    def layout(self) -> Layout:
        return Layout(Path(self.config.mounts.workspace))

    def attempt(self, number: int, known: CheckpointRef | None = None) -> StageConfig:
        attempt = Attempt(
            number=number, nodes=1, processes_per_node=2, micro_batch_size=1, known=known
        )
        return self.config.model_copy(update={"attempt": attempt})

    def copy(self, root: Path, **spec: dict[str, Any]) -> Job:
        """The same job, with all that it has done so far, in another folder; ``spec`` is laid over."""
        shutil.copytree(self.layout.root, root / "workspace", symlinks=True)
        data = merged(self.config.to_json(), {"job": {"spec": spec}})
        data["mounts"]["workspace"] = str(root / "workspace")
        return Job(root, StageConfig.model_validate(data))

    # --- what a run left ---------------------------------------------------------------------

    def claim(self, sequence: int) -> Claim:
        claim = claims.read(self.layout, sequence)
        assert claim is not None
        return claim

    def saved(self) -> list[str]:
        """Committed checkpoints, in the order of claims and steps."""
        found = self.layout.checkpoints.glob(f"*/step-*/{MANIFEST}")
        places = ((int(p.parts[-3]), int(p.parts[-2].removeprefix("step-"))) for p in found)
        return [f"{claim}/step-{step}" for claim, step in sorted(places)]

    def end(self, claim: int) -> TerminationReport:
        return TerminationReport.model_validate_json(self.layout.end_report(claim, 0).read_bytes())

    def samples(self) -> list[tuple[int, int, str]]:
        """(claim, step, digest of the sample ids) of every optimizer step, as it was trained."""
        if not self.layout.metrics.exists():
            return []
        out = []
        for line in self.layout.metrics.read_text(encoding="utf-8").split("\n")[:-1]:
            values = json.loads(line)
            if "samples" in values:
                out.append((values["claim"], values["step"], values["samples"]))
        return out

    def reached(self, step: int, claim: int = 1) -> Callable[[], bool]:
        return lambda: any(c == claim and s >= step for c, s, _ in self.samples())

    def final_weights(self) -> dict[str, str]:
        """SHA-256 of the weight files of the checkpoint of the last step."""
        last = self.saved()[-1]
        assert last.endswith(f"/step-{STEPS}")
        manifest = json.loads((self.layout.checkpoints / last / MANIFEST).read_text())
        weights = {
            entry["path"]: entry["sha256"]
            for entry in manifest["files"]
            if entry["path"].endswith(".safetensors")
        }
        assert weights
        return weights


def make_job(root: Path, method: str, engine: str, spec: dict[str, Any] | None = None) -> Job:
    """Make the model, the prepared data and the configuration of a job of two ranks."""
    base = {
        "model": {"uri": "pvc://models/tiny", "attention": "eager"},
        "method": METHODS[method],
        "parallelism": ENGINES[engine],
        "training": {"epochs": 2, "maxSteps": STEPS, "learningRate": 5e-3},
        "dataset": {"packing": True},
        "resources": {"processesPerNode": 2},
        "checkpoint": {"everySteps": SAVE_EVERY, "keep": 3},
    }
    config = make_config(root, "train", {**base, **(spec or {})})
    make_tiny_model(root / "volumes" / "models" / "tiny", dropout=0.1)
    model = fetch.materialise(config)
    choices = Choices(
        fingerprint=FINGERPRINT,
        model_path=model.path_ref,
        model_digest=model.digest,
        tokenizer_digest=model.tokenizer_digest,
        train_sequences=SEQUENCES,
        validation_sequences=HELD_OUT,
        evaluation_every_steps=EVALUATE_EVERY,
        packing=True,
        global_batch_size=4,
        micro_batch_size=1,
        micro_batch_chosen=False,
        steps_per_epoch=SEQUENCES // 4,
        total_steps=STEPS,
    )
    job = Job(root, config.model_copy(update={"choices": choices}))
    _write_data(job.layout)
    return job


def _write_data(layout: Layout) -> None:
    """Write both splits, as prepare would."""
    random = np.random.default_rng(7)
    with cache.staged(layout.prepared, FINGERPRINT) as folder:
        train, files = _write_split(folder / "train", SEQUENCES, random)
        validation, more = _write_split(folder / "validation", HELD_OUT, random)
        manifest = cache.PreparedManifest(
            fingerprint=FINGERPRINT,
            packing=True,
            max_length=128,
            train=train,
            validation=validation,
            files=(*files, *more),
        )
        cache.commit(folder, cache.folder_of(layout.prepared, FINGERPRINT), manifest)


def _write_split(
    folder: Path, sequences: int, random: np.random.Generator
) -> tuple[DataReport, list[FileEntry]]:
    """Sequences of two or three packed documents of random tokens, half of each trained."""
    split = cache.SplitWriter(folder)
    members, ends = [], []
    tokens = trained = 0
    for _ in range(sequences):
        for _ in range(int(random.integers(2, 4))):
            length = int(random.integers(8, 20))
            members.append(split.add(random.integers(3, 300, length), [(length // 2, length)]))
            tokens += length
            trained += length - length // 2
        ends.append(len(members))
    report = DataReport(
        rows=len(members),
        rows_used=len(members),
        sequences=sequences,
        tokens=tokens,
        trained_tokens=trained,
    )
    return report, split.finish(np.array(members), np.array(ends))


@dataclass
class Run:
    """One attempt under way: a supervisor and its ranks."""

    driver: Driver
    pid: int
    folder: Path
    log: Path
    code: int | None = None

    def wait(self, seconds: float = 240.0) -> int:
        """The exit code of the supervisor."""
        if self.code is None:
            self.code = self.driver.ask(wait=self.pid, seconds=seconds)["code"]
        if self.code is None:
            self.kill()
            raise AssertionError(f"still runs after {seconds} s:\n{self.tail()}")
        return self.code

    def until(self, happened: Callable[[], bool], what: str, seconds: float = 240.0) -> None:
        """Look every two milliseconds until something has happened."""
        end = time.monotonic() + seconds
        while not happened():
            if not Path(f"/proc/{self.pid}").exists() or _state(self.pid) == "Z":
                raise AssertionError(f"ended before {what}:\n{self.tail()}")
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"not within {seconds} s: {what}\n{self.tail()}")
            time.sleep(0.002)

    def ranks(self) -> list[int]:
        """Process ids of the ranks that live."""
        found = self.folder.glob("finetune-ends-*/*.pid")
        pids = [int(path.read_text() or 0) for path in sorted(found)]
        return [pid for pid in pids if pid and Path(f"/proc/{pid}").exists()]

    def signal_all(self, number: int) -> None:
        """Signal the ranks and the supervisor, as a node or a kernel does."""
        for pid in (*self.ranks(), self.pid):
            _tell(pid, number)

    def stop_all(self) -> None:
        """SIGSTOP everything, and wait until it has stopped."""
        self.signal_all(signal.SIGSTOP)
        for pid in (*self.ranks(), self.pid):
            while _state(pid) not in "TZ":
                time.sleep(0.001)

    def go_on(self) -> None:
        """SIGCONT everything."""
        self.signal_all(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL everything at once, as when a node is lost; returns when nothing is left."""
        pids = (*self.ranks(), self.pid)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                _tell(pid, number)
        self.code = self.driver.ask(wait=self.pid, seconds=30)["code"]
        while any(Path(f"/proc/{pid}").exists() and _state(pid) != "Z" for pid in pids):
            time.sleep(0.002)

    def tail(self) -> str:
        text = "\n--- ranks\n".join(
            path.read_text(errors="replace")[-4000:] for path in (self.log, self.driver.output)
        )
        for path in sorted(self.folder.glob("workspace/logs/*.log")):
            text += f"\n--- {path.name}\n" + path.read_text(errors="replace")[-4000:]
        return text


def _tell(pid: int, number: int) -> None:
    """Signal a process; one that has ended meanwhile hears nothing."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def hold(path: Path) -> Path:
    """Make whoever opens this file for writing wait there: it is a pipe that nobody reads."""
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    return path


def release(run: Run, path: Path) -> None:
    """Let it go on, with an ordinary file: its call of open begins anew after the stop."""
    run.stop_all()
    path.unlink()
    run.signal_all(signal.SIGCONT)


def wakes(pid: int) -> int:
    """How often a process gave up the processor by itself: it grows when a sleeper hears a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def waits_at_a_pipe(pid: int) -> bool:
    """Whether a process sleeps where it opens what is held."""
    return Path(f"/proc/{pid}/wchan").read_text() == "wait_for_partner"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "Z"


@dataclass
class Driver:
    """The process that forks runs (``trainer_driver``)."""

    process: subprocess.Popen[str]
    output: Path
    """What the ranks print."""
    runs: list[Run] = field(default_factory=list)

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, job: Job, attempt: int = 1, known: CheckpointRef | None = None) -> Run:
        """Start an attempt of a job."""
        config = job.attempt(attempt, known)
        file = write_config(config, job.root / f"attempt-{attempt}.json")
        folder = job.root / f"run-{len(self.runs)}"
        folder.mkdir()
        log = folder / "out.log"
        answer = self.ask(
            start=["train", "--config", str(file), "--config-digest", config.digest],
            environment={
                "TMPDIR": str(folder),
                "FINETUNE_TERMINATION_LOG": str(folder / "termination.json"),
            },
            log=str(log),
        )
        run = Run(self, answer["pid"], folder, log)
        (folder / "workspace").symlink_to(job.layout.root)
        self.runs.append(run)
        return run


@contextmanager
def trainer_driver(**environment: str) -> Iterator[Driver]:
    """Run a driver, all of whose ranks have ``environment``; at the end nothing of it is left."""
    script = Path(__file__).with_name("trainer_driver.py")
    with tempfile.NamedTemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env={**os.environ, **environment},
        )
        yield from _driven(Driver(process, Path(output.name)))


def _driven(driver: Driver) -> Iterator[Driver]:
    process = driver.process
    try:
        yield driver
    finally:
        for run in driver.runs:
            if run.code is None:
                run.kill()
        assert process.stdin
        process.stdin.close()
        process.wait(timeout=30)
