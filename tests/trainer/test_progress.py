from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from finetune_api.checkpoint import CheckpointRef
from finetune_api.names import Layout
from finetune_api.reports import Goodput, Progress
from finetune_operator.progress import Source
from finetune_operator.progress_log import newest
from finetune_operator.queue import Key
from finetune_trainer.callbacks.endpoint import Endpoint
from finetune_trainer.callbacks.goodput import Clock
from finetune_trainer.callbacks.hang import Watchdog, allowed
from finetune_trainer.callbacks.meter import Meter
from finetune_trainer.callbacks.progress import Reporter, append_line
from finetune_trainer.callbacks.signals import Agreement
from finetune_trainer.checkpoint.gang import PATIENCE, Gang

PROGRESS = Progress(
    job_uid="u", attempt=2, claim=3, phase="training", step=7, total_steps=20, loss=1.25,
    evaluation={"loss": 2.5}, goodput=Goodput(productive=8, starting=2),
)  # fmt: skip


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def test_progress_and_metrics_are_served() -> None:
    endpoint = Endpoint("127.0.0.1", 0, lambda: PROGRESS)
    try:
        status, body = get(endpoint.port, "/progress")
        assert status == 200
        assert Progress.model_validate_json(body) == PROGRESS
        status, body = get(endpoint.port, "/metrics")
        families = {family.name: family for family in text_string_to_metric_families(body)}
        assert families["finetune_step"].samples[0].value == 7
        planned = families["finetune_steps_planned"]
        assert (planned.type, planned.samples[0].value) == ("gauge", 20), "not a counter's name"
        assert families["finetune_loss"].samples[0].value == 1.25
        assert families["finetune_evaluation"].samples[0].labels == {"metric": "loss"}
        assert "finetune_learning_rate" not in families, "what is not known is left out"
        assert "job=" not in body, "no labels a job"
        assert get(endpoint.port, "/")[0] == 404
    finally:
        endpoint.close()


def test_an_answer_that_is_too_long_is_refused() -> None:
    long = PROGRESS.model_copy(update={"evaluation": {f"m{i}": 1.0 for i in range(9000)}})
    endpoint = Endpoint("127.0.0.1", 0, lambda: long)
    try:
        assert get(endpoint.port, "/progress")[0] == 500
    finally:
        endpoint.close()


def test_a_line_after_one_that_was_cut_short_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "metrics.jsonl"
    append_line(path, {"step": 1})
    with path.open("a") as stream:
        stream.write('{"step": 2, "lo')
    append_line(path, {"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n'


def reporter_of(layout: Layout) -> Reporter:
    """Return the reporter of a first attempt that has no checkpoint yet."""
    begun = Progress(job_uid="u", attempt=1, claim=1)
    return Reporter(begun, layout, Gang(), Clock(0.0), Meter(), newest=lambda: None)


def test_an_infinite_gradient_norm_hides_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss scaler of fp16 meets one in its first steps; JSON knows no infinity."""
    layout = Layout(tmp_path)
    reporter = reporter_of(layout)
    state = type("State", (), {"global_step": 1, "max_steps": 6, "epoch": 0.25})()
    reporter.on_log(None, state, None, {"loss": 6.5, "learning_rate": 1e-4, "grad_norm": math.inf})
    told = Progress.model_validate_json(layout.progress.read_bytes())
    assert (told.step, told.loss, told.learning_rate) == (1, 6.5, 1e-4)
    assert told.gradient_norm is None
    for line in (layout.metrics.read_text(), capsys.readouterr().out):
        assert "Infinity" not in line
        values = json.loads(line)
        assert (values["step"], values["loss"], "gradientNorm" in values) == (1, 6.5, False)

    state.global_step = 2
    reporter.on_log(None, state, None, {"loss": 6.25, "learning_rate": 1e-4, "grad_norm": 0.5})
    assert Progress.model_validate_json(layout.progress.read_bytes()).gradient_norm == 0.5


def test_the_line_in_the_log_says_where_the_attempt_began(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the operator cannot reach the pod, status knows it from this line alone."""
    reporter = reporter_of(Layout(tmp_path))
    start = CheckpointRef(step=40, path="checkpoints/1/step-40", digest="sha256:" + "a" * 64)
    reporter.update(resumed_from=start)
    state = type("State", (), {"global_step": 41, "max_steps": 60, "epoch": 0.25})()
    reporter.on_log(None, state, None, {"loss": 6.5})
    said = capsys.readouterr().out.splitlines()[-1].encode()
    known = reporter.progress
    source = Source(Key("team", "bot"), known.job_uid, known.attempt, "127.0.0.1", "bot-1-0")
    heard = newest(said, source, None)
    assert heard is not None
    assert (heard.step, heard.resumed_from) == (41, start)


def test_progress_that_cannot_be_written_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path)
    reports = layout.progress.parent
    reports.write_text("a file where the folder belongs")
    reporter = reporter_of(layout)
    state = type("State", (), {"global_step": 1, "max_steps": 6, "epoch": 0.25})()
    with reporter.phase("saving"):
        reporter.update(step=1)
        reporter.evaluated(1, {"loss": 6.5})
    said = capsys.readouterr()
    assert reporter.progress.step == 1
    assert json.loads(said.out)["event"] == "evaluation"
    (line,) = said.err.splitlines()
    assert line.startswith("progress cannot be told, training goes on: ")
    reports.unlink()
    reporter.on_log(None, state, None, {"loss": 6.25, "learning_rate": 1e-4, "grad_norm": 0.5})
    assert Progress.model_validate_json(layout.progress.read_bytes()).loss == 6.25

    def stale(*_: Any) -> bool:
        raise OSError(116, "Stale file handle")

    # Whether a newer claim exists cannot be asked: the file may be another's.
    monkeypatch.setattr("finetune_trainer.checkpoint.claim.newer", stale)
    capsys.readouterr()
    for step in (2, 3):
        reporter.update(step=step)
    assert Progress.model_validate_json(layout.progress.read_bytes()).step == 1
    assert capsys.readouterr().err == (
        "progress cannot be told, training goes on: [Errno 116] Stale file handle\n"
    )


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_second_goes_to_one_bucket() -> None:
    now = Time()
    clock = Clock(90.0, furthest=1, clock=now)

    def step(number: int, seconds: float) -> None:
        now.now += seconds
        clock.on_step_end(None, type("State", (), {"global_step": number}), None)

    clock.switch("training")  # 10 s of starting
    step(1, 5)  # trained before, by an earlier claim
    step(2, 4)
    now.now += 1
    clock.switch("evaluating")
    now.now += 3
    clock.switch("saving")
    now.now += 2
    clock.switch("training")
    step(3, 1)
    now.now += 7  # a step that is not finished
    assert clock.goodput() == Goodput(
        productive=6.0, starting=10.0, saving=2.0, evaluating=3.0, lost=12.0
    )
    assert clock.step_seconds == 4.0


@pytest.mark.parametrize(("step", "seconds"), [(None, 3600.0), (1.0, 600.0), (90.0, 900.0)])
def test_what_counts_as_hung(step: float | None, seconds: float) -> None:
    assert allowed(step) == seconds


@pytest.mark.parametrize(
    ("step", "seconds"), [(None, 21600.0), (1.0, 21600.0), (30.0, 21600.0), (400.0, 24000.0)]
)
def test_a_save_has_as_long_as_the_other_ranks_wait_for_it(
    step: float | None, seconds: float
) -> None:
    assert allowed(step, patience=6.0) == seconds >= PATIENCE


def test_a_hung_rank_dumps_its_stacks_and_ends_with_20(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "rank.log"
    code = (
        "import sys, time; from pathlib import Path;"
        "from finetune_trainer.callbacks.hang import Watchdog;"
        "dog = Watchdog(Path(sys.argv[1]), lambda: 0.001, floor=2.0); dog.start();"
        "[(time.sleep(0.1), dog.beat()) for _ in range(25)]; print('alive', flush=True);"
        "time.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(log)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 20
    assert done.stdout == "alive\n", "signs of life keep it going"
    assert "no step within" in log.read_text()
    assert "most recent call first" in log.read_text()


def test_a_watchdog_that_was_stopped_barks_no_more(tmp_path: Path) -> None:
    barked: list[int] = []

    def end() -> None:
        barked.append(1)
        sys.exit()  # its thread alone: the end of this process would be next

    before = threading.enumerate()
    dog = Watchdog(tmp_path / "log", lambda: 0.001, floor=2.0, end=end)
    dog.start()
    started = [one for one in threading.enumerate() if one not in before]
    (watching,) = [one for one in started if one.name == "hang-watchdog"]
    dog.stop()
    watching.join(30)
    assert (watching.is_alive(), barked) == (False, [])


RANKS = """
import json, os, sys
import torch.distributed as dist
from finetune_trainer.callbacks.signals import Agreement
from finetune_trainer.checkpoint.gang import Gang
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
agreement = Agreement(Gang(dist.get_rank(), 2, dist.new_group(backend="gloo")))
given = json.loads(sys.argv[3])
print(json.dumps([agreement.poll(value) for value in given] + [agreement.settle()]))
dist.destroy_process_group()
"""


def test_all_ranks_agree_one_poll_later(tmp_path: Path) -> None:
    def start(rank: int, given: list[int]) -> Any:
        return subprocess.Popen(
            [sys.executable, "-c", RANKS, str(tmp_path / "store"), str(rank), json.dumps(given)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    ranks = [start(0, [0, 1, 0, 0]), start(1, [0, 0, 2, 0])]
    answers = [json.loads(rank.communicate(timeout=120)[0].splitlines()[-1]) for rank in ranks]
    assert answers == [[0, 0, 1, 2, 0]] * 2


def test_one_rank_agrees_with_itself_at_once() -> None:
    agreement = Agreement(Gang())
    assert [agreement.poll(value) for value in (0, 2, 1)] == [0, 2, 1]
    assert agreement.settle() == 0
