"""``finetune run`` from its arguments: what is refused, what is said, which exit code it has."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from finetune_api.problem import Refused
from finetune_cli import main as cli
from finetune_cli.run import command, local, record
from finetune_cli.run.keeper import write_whole
from finetune_cli.run.lock import Lock
from finetune_cli.run.processes import Gate, prepare_process
from finetune_cli.run.record import LocalChild
from finetune_cli.run.volumes import parse_volumes
from harness.local_driver import TRAINER
from harness.scenarios import DONE, Try
from harness.simulation import make_choices

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: otto}
spec:
  model: {uri: pvc://models/tiny}
  dataset: {train: [{uri: pvc://datasets/train.jsonl}]}
  method: {lora: {r: 8}}
  resources: {accelerator: {device: cpu, perNode: 0}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a job file, two claims and a trainer that does as it is told."""
    for name in ("models", "datasets"):
        (tmp_path / name).mkdir()
    (tmp_path / "job.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_SCRIPT", str(tmp_path / "script.json"))
    monkeypatch.setattr(
        command,
        "LocalRun",
        lambda *args: local.LocalRun(
            *args,
            pace=local.Pace(look=0.01, back_off=0.0),
            trainer=TRAINER,
        ),
    )
    script(tmp_path)
    yield tmp_path


def script(
    folder: Path,
    prepare: tuple[Try, ...] = (Try(),),
    train: tuple[Try, ...] = (DONE,),
    publish: tuple[Try, ...] = (Try(),),
) -> None:
    stages = {"prepare": prepare, "train": train, "publish": publish}
    lines = {stage: [asdict(line) for line in tries] for stage, tries in stages.items()}
    text = json.dumps({**lines, "choices": make_choices().to_json()})
    (folder / "script.json").write_text(text)


VOLUMES = ["--volume", "models=models", "--volume", "datasets=datasets"]


def run(*more: str) -> int:
    return cli.main(["run", "job.yaml", *VOLUMES, *more])


def test_a_claim_without_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "job.yaml", "--volume", "models=models"]) == 10
    err = capsys.readouterr().err
    assert "job.yaml:6:22 error  no folder stands for the claim datasets on this machine" in err
    assert "fix: add --volume datasets=FOLDER (a folder with train.jsonl in it)" in err
    assert not (folder / "finetune-jobs").exists()


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("models", "volume-malformed"),
        ("=models", "volume-malformed"),
        ("models=", "volume-malformed"),
        ("models=nowhere", "volume-missing"),
        ("models=job.yaml", "volume-missing"),
    ],
)
def test_words_that_are_no_volume(folder: Path, word: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_volumes([word])
    assert [problem.code for problem in refused.value.problems] == [code]


def test_success_and_the_same_command_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    out = capsys.readouterr().out
    (job,) = (folder / "finetune-jobs").glob("otto-*")
    lines = out.splitlines()
    assert lines[0] == f"otto  {job}"
    assert "training   attempt 1 from step 0" in lines
    assert "publishing merging and verifying the model" in lines
    assert lines[-3].startswith("otto  Succeeded in ")
    assert lines[-3].endswith("LoRA r=8 on tiny, 60 steps")
    assert lines[-2] == "  eval loss 1.797 -> 1.030   gate: not set"
    assert lines[-1] == f"  model  {job}/output  (merged)"
    status = json.loads((job / "status.json").read_text())["status"]
    assert status["output"]["uri"] == f"{job}/output"
    said = {one["type"]: one["message"] for one in status["conditions"]}
    assert said["Succeeded"] == f"the model is at {job}/output"

    assert run() == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"  model  {job}/output  (merged)"
    assert [p.name for p in (folder / "finetune-jobs").glob("otto-*")] == [job.name]


def test_what_is_compiled_is_kept_from_process_to_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def prepared(*args: Any, environment: dict[str, str], **more: Any) -> Gate:
        seen.append(environment["TORCHINDUCTOR_CACHE_DIR"])
        return prepare_process(*args, environment=environment, **more)

    monkeypatch.setattr(local, "prepare_process", prepared)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert run() == 0
    assert seen == [f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"] * 3
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/chosen")
    assert run("--fresh") == 0
    assert seen[3:] == ["/chosen"] * 3


def test_failure_has_the_exit_code_of_its_cause_and_can_be_mended(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Try((11,), code="no-assistant-turn", fix="add the answer")
    script(folder, prepare=(broken, Try()))
    assert run() == 11
    out = capsys.readouterr().out
    assert "otto  Failed/InvalidData: said so [no-assistant-turn]\n  fix: add the answer" in out
    assert run() == 0
    out = capsys.readouterr().out
    assert "the last run failed (InvalidData: said so); trying again" in out


def test_a_changed_field_is_refused_and_fresh_begins_anew(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    (folder / "job.yaml").write_text(JOB.replace("r: 8", "r: 16"))
    capsys.readouterr()
    assert run() == 10
    assert capsys.readouterr().err == (
        "job.yaml:7:19 error  spec.method.lora.r was 8 when the job began and is 16 in job.yaml now;"
        " what training means cannot change half-way [field-immutable]\n"
        "                     fix: put it back to 8, give the job another name, or start anew with"
        " --fresh (what the first run left stays where it is)\n"
    )
    assert run("--fresh") == 0
    assert len(list((folder / "finetune-jobs").glob("otto-*"))) == 2
    assert "LoRA r=16" in capsys.readouterr().out
    assert run() == 0
    assert len(list((folder / "finetune-jobs").glob("otto-*"))) == 2


def test_recovery_may_change(folder: Path) -> None:
    script(folder, train=(Try((1,), step=5), Try((1,), step=5), DONE))
    text = JOB + "  recovery: {maxFailures: 0}\n"
    (folder / "job.yaml").write_text(text)
    assert run() == 1
    (folder / "job.yaml").write_text(JOB + "  recovery: {maxFailures: 5}\n")
    assert run() == 0


def test_two_runs_of_one_job(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = Lock(folder / "finetune-jobs", "otto")
    try:
        assert run() == 1
    finally:
        lock.release()
    err = capsys.readouterr().err
    assert f"another finetune run works on otto (process {os.getpid()})" in err
    assert "finetune watch otto" in err
    assert run() == 0


def test_a_status_that_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    (status,) = (folder / "finetune-jobs").glob("otto-*/status.json")
    status.write_text("{")
    assert run() == 1
    err = capsys.readouterr().err
    assert "[status-unreadable]" in err
    assert "--fresh" in err
    assert status.read_text() == "{"


def test_a_suspended_job_starts_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "job.yaml").write_text(JOB + "  suspend: true\n")
    assert run() == 0
    assert "otto is suspended: set spec.suspend to false to go on" in capsys.readouterr().out
    assert not list((folder / "finetune-jobs").glob("otto-*/reports"))
    (folder / "job.yaml").write_text(JOB)
    assert run() == 0


def started(folder: Path) -> int:
    """Start the command in a process of its own, which a signal may end; returns its id."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            with (folder / "out").open("w") as out:
                sys.stdout = sys.stderr = out
                code = run()
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int | None:
    """Return the exit code of a process (negative: the signal), None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def test_sigterm_saves_and_ends_with_143(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = let_it_wait(folder)
    pid = started(folder)
    code = None
    try:
        until = time.monotonic() + 120
        while not waiting.is_file():
            code = ended(pid)
            assert code is None, (folder / "out").read_text()
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(pid, signal.SIGTERM)
        while (code := ended(pid)) is None:
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        if code is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    out = (folder / "out").read_text()
    assert code == 143, out
    assert out.splitlines()[-1] == "stopped at step 31, saved; run the same command to go on"
    assert run() == 0
    out = capsys.readouterr().out
    assert "training   attempt 2 from verified step 31" in out
    digest = "a" * 8
    assert (
        f"  attempt 2: Stopped at step 31, resumed from 31 (sha256 {digest}...), 0 steps repeated"
    ) in out


def let_it_wait(folder: Path) -> Path:
    """Let the first attempt wait for SIGTERM; returns the file that then has its process id."""
    script(folder, train=(Try((143,), step=31, checkpoint=31), DONE))
    data = json.loads((folder / "script.json").read_text())
    data["train"][0]["wait_for_sigterm"] = True
    data["waiting"] = str(folder / "waiting")
    (folder / "script.json").write_text(json.dumps(data))
    return folder / "waiting"


@pytest.mark.parametrize(
    ("number", "times", "code", "why"),
    [
        (errno.ENOSPC, 1000, 14, "No space left on device"),
        (errno.ENOSPC, 1, 14, "No space left on device"),
        (errno.EIO, 1000, 1, "Input/output error"),
    ],
)
def test_a_state_that_cannot_be_written_ends_the_processes(
    folder: Path,
    number: int,
    times: int,
    code: int,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    waiting = let_it_wait(folder)
    failed = 0

    def write(path: Path, data: bytes) -> None:
        nonlocal failed
        if waiting.is_file() and failed < times:
            failed += 1
            raise OSError(number, os.strerror(number))
        write_whole(path, data)

    started = local.LocalRun._wait_for_start

    def wait(runner: local.LocalRun, child: LocalChild) -> None:
        started(runner, child)
        until = time.monotonic() + 30
        while child.stage == "train" and not (waiting.is_file() and waiting.read_text()):
            assert time.monotonic() < until
            time.sleep(0.01)

    with monkeypatch.context() as broken:
        broken.setattr(record, "write_whole", write)
        broken.setattr(local.LocalRun, "_wait_for_start", wait)
        assert run() == code
    (job,) = (folder / "finetune-jobs").glob("otto-*")
    assert capsys.readouterr().err.splitlines()[0] == (
        f"error  finetune run cannot go on in {job}; its processes were ended: {why}"
        " [state-not-written]"
    )
    assert failed >= 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(waiting.read_text()), 0)
    assert run() == 0
    assert "training   attempt 2 from verified step 31" in capsys.readouterr().out


def test_a_file_that_could_not_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_whole(tmp_path / "status.json", b"before")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_whole(tmp_path / "status.json", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    assert (tmp_path / "status.json").read_bytes() == b"before"


def test_watch_finds_the_job_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    capsys.readouterr()
    assert cli.main(["watch", "otto"]) == 0
    assert "otto  Succeeded in " in capsys.readouterr().out
    (job,) = (folder / "finetune-jobs").glob("otto-*")
    assert cli.main(["watch", str(job), "--once"]) == 0
    assert cli.main(["watch", "nobody"]) == 1
    assert "[job-not-found]" in capsys.readouterr().err


def test_logs_of_what_is_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script(folder, train=(Try((1,), step=9, checkpoint=9), DONE))
    assert run() == 0
    (job,) = (folder / "finetune-jobs").glob("otto-*")
    for name in ("prepare-1", "train-1", "train-2", "publish-1"):
        (job / f"logs/{name}.log").write_text(f"said by {name}\n")
    (job / "logs/train-2-node-1.log").write_text("said by another node\n")
    for place, name in enumerate(("prepare-1", "train-1", "train-2", "publish-1")):
        os.utime(job / f"logs/{name}.log", (place, place))
    os.utime(job / "logs/train-2-node-1.log", (2, 2))
    # The trainer's tracebacks lie beside them.
    (job / "logs/train-1-0.log").write_text("a traceback\n")
    (job / "logs/prepare-0.log").write_text("a traceback\n")
    capsys.readouterr()

    def logs(*words: str) -> str:
        assert cli.main(["logs", "otto", *words]) == 0
        return capsys.readouterr().out

    assert logs() == "said by publish-1\n"
    assert logs("--stage", "prepare") == "said by prepare-1\n"
    assert logs("--attempt", "1") == "said by train-1\n"
    both = "[train-2] said by train-2\n[train-2-node-1] said by another node\n"
    assert logs("--attempt", "2") == both
    assert logs("--stage", "train") == both
    assert logs("--previous") == both
    assert logs("--stage", "train", "--previous") == "said by train-1\n"
    assert logs("--attempt", "2", "--rank", "1") == "said by another node\n"
    os.utime(job / "logs/prepare-1.log", (9, 9))
    assert logs() == "said by prepare-1\n", "it was tried again"
    for words in (["--attempt", "3"], ["--rank", "1"], ["--stage", "prepare", "--previous"]):
        assert cli.main(["logs", "otto", *words]) == 1
        assert "job otto of this machine has no such log [no-logs]" in capsys.readouterr().err


def test_the_log_of_this_machine_is_followed_as_a_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    capsys.readouterr()
    assert cli.main(["logs", "otto", "--stage", "train", "-f"]) == 1
    (log,) = (folder / "finetune-jobs").glob("otto-*/logs/train-1.log")
    relative = log.relative_to(folder)
    assert (
        capsys.readouterr().err.splitlines()[1] == f"       fix: follow it with: tail -F {relative}"
    )
