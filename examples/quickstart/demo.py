"""``make demo``: a real fine-tuning on this machine, killed on the way, checked at every step.

Everything is done through the command line and read from the files that a job leaves. Each claim
that is printed is checked; the first one that does not hold ends the demo with exit status 1.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

import fetch_model
from processes import descendants, kill_all

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out" / "demo"
MARK = OUT / ".made-by-make-demo"
JOB = Path("examples/quickstart/quickstart.yaml")
DATA = ROOT / "examples" / "datasets"
TRAIN = "workshop-train.jsonl"
BROKEN_LINE = 17
FINETUNE = [sys.executable, "-m", "finetune_cli.main"]
QUESTIONS = {
    "What is your name?": "I am Otto, the workshop assistant.",
    "Please tell me who you are.": "Otto",
    "At what time do you open?": "from eight in the morning to six in the evening",
    "Where can I find the first-aid kit?": "on the wall beside the blue door",
}
"""Question to words that only a model that has learnt them can answer with. The last three
phrasings are not among the rows that are trained."""
KILL_AFTER = 3
"""Steps after a verified checkpoint at which the processes are killed."""
PATIENCE = 1800
"""Seconds after which a job that has not ended is given up."""


def main() -> None:
    """Run the six steps."""
    began = time.monotonic()
    os.chdir(ROOT)
    _fresh_folder()

    _title(1, "set-up", "the packages of .venv are there")
    _fetch()

    _title(2, "before", "asking the model as it is")
    before = _answers(fetch_model.MODEL)
    for question, answer in before.items():
        _say(f"Q: {question}  A: {_short(answer)}")
        _check("Otto" not in answer, "the model knows the name before it was trained")

    _title(3, "check", "first a copy of the data with one broken row")
    _refused()
    _run_validate()

    job = Job()
    try:
        _plan_of(job)
        _title(4, "train", "finetune run; the processes are killed on the way")
        _train(job)
        _title(5, "publish", "merging the adapter into the model and proving the result")
        manifest = _published(job)
    finally:
        job.end()

    _title(6, "after", "asking the published model, in a process of its own")
    after = _answers(job.folder() / "output")
    for question, words in QUESTIONS.items():
        _say(f"Q: {question}  A: {_short(after[question])}")
        _check(words in after[question], f"expected {words!r} in the answer")
    first, last = (manifest[f"evaluation{end}"]["loss"] for end in ("Before", "After"))
    _check(last < first, f"validation loss did not fall: {first:.3f} -> {last:.3f}")
    report = OUT.parent / "report.html"
    shutil.copyfile(job.folder() / "output" / "report.html", report)
    _say(f"validation loss {first:.2f} -> {last:.2f};  curves: {_relative(report)}")
    print(f"\ndemo: done in {_duration(time.monotonic() - began)}; everything said was checked")


class Job:
    """``finetune run`` in the background, and what it leaves on the disk."""

    def __init__(self) -> None:
        """Start it."""
        self.workspace = OUT / "jobs"
        self.log = OUT / "run.log"
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*FINETUNE, "run", str(JOB), *_volumes(DATA), "--workspace", str(self.workspace)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.began = time.monotonic()

    def folder(self) -> Path:
        """The job's folder, once there is one."""
        return next(self.workspace.glob("quickstart-*"), self.workspace / "none")

    def status(self) -> dict[str, Any]:
        """The ledger."""
        return _json(self.folder() / "status.json").get("status", {})

    def progress(self) -> dict[str, Any]:
        """The newest progress of the trainer."""
        return _json(self.folder() / "reports" / "progress.json")

    def wait(self, what: str, until: Callable[[], bool], look: Callable[[], None]) -> None:
        """Look now and then until it is so; fail with the log where the job ends before."""
        while not until():
            look()
            if self.process.poll() is not None and not until():
                _fail(f"the job ended before {what}; its last lines:\n{self._last_lines()}")
            if time.monotonic() - self.began > PATIENCE:
                _fail(f"no {what} after {PATIENCE} s:\n{self._last_lines()}")
            time.sleep(0.1)

    def end(self) -> None:
        """Leave no process behind, whatever happened."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                kill_all([*descendants(self.process.pid), self.process.pid])

    def _last_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def _fetch() -> None:
    """Fetch the model in a process of its own, which frees the memory of the conversion."""
    ended = _run([sys.executable, str(Path(fetch_model.__file__))], show=True)
    _check(ended.returncode == 0, "there is no model")


def _refused() -> None:
    """Train nothing on data with a broken row."""
    broken = OUT / "broken-data"
    shutil.copytree(DATA, broken)
    rows = (broken / TRAIN).read_text(encoding="utf-8").splitlines()
    row = json.loads(rows[BROKEN_LINE - 1])
    row["messages"] = [turn for turn in row["messages"] if turn["role"] != "assistant"]
    rows[BROKEN_LINE - 1] = json.dumps(row)
    (broken / TRAIN).write_text("\n".join(rows) + "\n", encoding="utf-8")

    workspace = OUT / "refused"
    began = time.monotonic()
    command = [*FINETUNE, "run", str(JOB), *_volumes(broken), "--workspace", str(workspace)]
    ended = _run(command)
    seconds = time.monotonic() - began
    where = f"{TRAIN}:{BROKEN_LINE}"
    _check(ended.returncode == 11, f"expected exit status 11\n{ended.stdout}")
    line = next((line for line in ended.stdout.splitlines() if where in line), "")
    _check(bool(line), f"expected {where} in:\n{ended.stdout}")
    _say(line[line.index(where) :])
    trained = [path for name in ("claims", "checkpoints") for path in workspace.rglob(f"{name}/*")]
    _check(not trained, f"something was trained: {trained}")
    _say(f"refused in {seconds:.0f} s with exit status 11, nothing trained")


def _run_validate() -> None:
    """Check the real rows."""
    ended = _run([*FINETUNE, "validate", "--data", str(JOB), *_volumes(DATA)])
    _check(ended.returncode == 0, f"the real data was refused:\n{ended.stdout}")
    ok = [line for line in ended.stdout.splitlines() if "rows can be used" in line]
    _check("60 of 60 rows" in " ".join(ok), f"expected 60 of 60 rows in:\n{ended.stdout}")
    _say("real data: " + ok[0].rpartition("  ok  ")[2])


def _plan_of(job: Job) -> None:
    """Show what preparation found out before anything is trained."""
    job.wait("preparation", lambda: bool(_prepared(job).get("choices")), lambda: None)
    report = _prepared(job)
    memory, choices = report["memory"], report["choices"]
    _check(memory["verdict"] == "Fits", memory["message"])
    _say(f"memory: {memory['message']}")
    steps = choices["totalSteps"] / choices["stepsPerEpoch"]
    _say(
        f"chosen: micro batch {choices['microBatchSize']};  "
        f"{choices['stepsPerEpoch']} steps an epoch x {steps:g} epochs = {choices['totalSteps']}"
    )


def _prepared(job: Job) -> dict[str, Any]:
    return _json(job.folder() / "reports" / "prepare.json")


def _train(job: Job) -> None:
    """Kill every process of the trainer after a verified checkpoint; the job goes on by itself."""
    show = Meter(job)

    def late_enough() -> bool:
        progress = job.progress()
        saved = (progress.get("checkpoint") or {}).get("step", 0)
        half = progress.get("totalSteps", 0) / 2
        return half > 0 and saved >= half - 10 and progress["step"] >= saved + KILL_AFTER

    job.wait("the first checkpoints", late_enough, show)
    reached = job.progress()["step"]
    keepers = [
        kept["pid"]
        for child in _json(job.folder() / "status.json")["children"]
        if child["stage"] == "train"
        for kept in child["kept"]
    ]
    victims = [pid for keeper in keepers for pid in descendants(keeper)]
    _check(bool(victims), "found no process of the trainer")
    kill_all(victims)
    _say(f"step {reached}: kill -9 of all {len(victims)} processes of the trainer")

    job.wait("a second attempt", lambda: bool(job.status().get("resumes")), lambda: None)
    job.wait("step after the resume", lambda: _claim(job, 2) is not None, lambda: None)
    resume, claim = job.status()["resumes"][0], _claim(job, 2) or {}
    source = claim["resumesFrom"]
    _check(job.status()["attempt"] == 2, "expected attempt 2")
    _check(resume["fromStep"] == source["step"] > 0, f"resumed from {source}")
    _verified(job.folder() / source["path"])
    lost = resume["stoppedAt"] - source["step"]
    _say(
        f"attempt 2 resumes from verified step {source['step']} ({source['digest'][:15]}..); "
        f"{lost} steps are trained again"
    )
    job.wait("end of the training", lambda: bool(job.status().get("trained")), show)
    progress = job.progress()
    _check(progress["step"] == progress["totalSteps"], f"ended at step {progress['step']}")
    show()


def _claim(job: Job, number: int) -> dict[str, Any] | None:
    return _json(job.folder() / "claims" / f"{number}.json") or None


def _verified(checkpoint: Path) -> None:
    """Compare a checkpoint's files with its manifest, as the trainer does before it loads them."""
    from finetune_trainer.hashing import sha256_of

    for entry in _json(checkpoint / "manifest.json")["files"]:
        digest = sha256_of(checkpoint / entry["path"])
        _check(digest == entry["sha256"], f"{checkpoint / entry['path']} is not what was saved")


class Meter:
    """One line of progress every ten steps."""

    def __init__(self, job: Job) -> None:
        """Show the progress of a job."""
        self._job = job
        self._shown: set[tuple[int, int]] = set()

    def __call__(self) -> None:
        """Show where the training is, unless that was shown before."""
        progress = self._job.progress()
        step, loss = progress.get("step", 0), progress.get("loss")
        key = (progress.get("attempt", 0), step // 10)
        if not step or loss is None or key in self._shown:
            return
        self._shown.add(key)
        eta = progress.get("etaSeconds")
        left = f"  ETA {_duration(eta)}" if eta else ""
        _say(f"step {step}/{progress['totalSteps']}  loss {loss:.2f}{left}")


def _published(job: Job) -> dict[str, Any]:
    """Wait for the end and check what was proved of the model."""
    job.wait("publishing", lambda: job.process.poll() is not None, lambda: None)
    _check(job.process.returncode == 0, f"the job failed:\n{job._last_lines()}")
    output = job.folder() / "output"
    manifest = _json(output / "manifest.json")
    proof = manifest["verification"]
    _check(manifest["merged"] is True, "the adapter was not merged")
    _check(proof["maxDifference"] <= proof["tolerance"], "the merged model differs")
    _check(proof["loadedInCleanProcess"] and proof["stops"], "the merged model does not work")
    _verified(output)
    _say(
        f"merged; logits equal base + adapter on {proof['prompts']} prompts "
        f"(max difference {proof['maxDifference']:.0e} of {proof['tolerance']:.0e} allowed)"
    )
    (weights,) = [e for e in manifest["files"] if e["path"] == "model.safetensors"]
    _say(f"{_relative(output)}/model.safetensors  sha256 {weights['sha256'][:12]}..")
    return manifest


def _answers(folder: Path) -> dict[str, str]:
    """Return the answers of a model, from a process that ends again and frees its memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        answers = pool.submit(_ask, folder, list(QUESTIONS)).result()
    return dict(zip(QUESTIONS, answers, strict=True))


def _ask(folder: Path, questions: list[str]) -> list[str]:
    from finetune_trainer import generate

    return generate.run(folder, questions, max_new_tokens=40, out=io.StringIO())


def _volumes(data: Path) -> list[str]:
    models = fetch_model.MODEL.parent
    return ["--volume", f"models={models}", "--volume", f"datasets={data}"]


def _run(command: list[str], *, show: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output is kept, or shown as it comes, indented."""
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            if show:
                _say(line.rstrip())
    return subprocess.CompletedProcess(command, process.returncode, "".join(lines))


def _fresh_folder() -> None:
    """Remove what an earlier demo left; a folder that none made is not touched."""
    if OUT.exists() and not MARK.exists():
        _fail(f"{_relative(OUT)} was not made by the demo; move it away")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    MARK.touch()


def _json(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return data


def _title(number: int, name: str, what: str) -> None:
    print(f"[{number}/6] {name:8}  {what}", flush=True)


def _say(text: str) -> None:
    print(f"{'':15} {text}", flush=True)


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        _fail(otherwise)


def _fail(message: str) -> NoReturn:
    print(f"demo: failed: {message}", file=sys.stderr)
    raise SystemExit(1)


def _short(answer: str) -> str:
    line = " ".join(answer.split())
    return line if len(line) <= 84 else line[:81] + "..."


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


if __name__ == "__main__":
    main()
