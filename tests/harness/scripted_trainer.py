"""Stands for the trainer where the runner alone is tested: no model, no data, ends as it is told.

It is started as the trainer is, checks its configuration's digest as the trainer does, writes the
same reports, and then exits or dies as the script says (``FINETUNE_SCRIPT``: a JSON file with a
list of tries for each stage). A try may wait for SIGTERM before it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from finetune_api.checkpoint import CheckpointRef
from finetune_api.names import Layout
from finetune_api.problem import Problem
from finetune_api.reports import CompletionManifest, PrepareReport, Progress, TerminationReport
from finetune_api.resolved import Choices, StageConfig

DIGEST = "sha256:" + "a" * 64


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("--config")
    parser.add_argument("--config-digest")
    arguments = parser.parse_args()
    config = StageConfig.model_validate_json(Path(arguments.config).read_text(encoding="utf-8"))
    if config.digest != arguments.config_digest or config.stage != arguments.stage:
        return 10
    script = json.loads(Path(os.environ["FINETUNE_SCRIPT"]).read_text(encoding="utf-8"))
    node = int(os.environ.get("FINETUNE_NODE_RANK", "0"))
    layout = Layout(Path(config.mounts.workspace))
    number = config.attempt.number if config.attempt else _count(layout, arguments.stage)
    tries = script[arguments.stage]
    return play(config, layout, tries[min(number, len(tries)) - 1], script, number, node)


def play(
    config: StageConfig,
    layout: Layout,
    line: dict[str, Any],
    script: dict[str, Any],
    number: int,
    node: int,
) -> int:
    code = line["exits"][node]
    if line.get("wait_for_sigterm"):
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
        if config.stage == "train":
            progress(config, layout, line, number, saved=False)
        Path(script["waiting"]).write_text(str(os.getpid()), encoding="utf-8")
        until = time.monotonic() + 60
        while not stopped and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(line.get("saves_for", 0))
    if config.stage == "train" and node == 0:
        progress(config, layout, line, number, saved=True)
    if config.stage == "prepare" and code == 0:
        choices = Choices.model_validate(script["choices"])
        report = PrepareReport(job_uid=config.job.uid, choices=choices)
        write(layout.prepare_report, report.to_json())
    if config.stage == "publish" and code == 0:
        done = CompletionManifest(
            job=config.job.name,
            job_uid=config.job.uid,
            uri="output",
            base_model="tiny",
            base_digest=DIGEST,
            method="lora",
            objective="sft",
            merged=True,
            selected_step=60,
            steps=60,
            evaluation_before={"loss": 1.797},
            evaluation_after={"loss": 1.03},
            files=(),
            time="2026-01-01T00:00:00Z",
        )
        write(layout.publish_report, done.to_json())
    if code in (137,):
        if line.get("reason") == "OOMKilled":  # what the kernel does before it kills
            Path(script["memory_events"]).write_text("oom_kill 1\n", encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)
    problems = ()
    if line.get("code"):
        problems = (Problem(code=line["code"], message="said so", fix=line.get("fix", "")),)
    report = TerminationReport(
        stage=config.stage,
        job_uid=config.job.uid,
        attempt=number,
        node=node,
        exit_code=code,
        step=line.get("step", 0),
        problems=problems,
    )
    write(Path(os.environ["FINETUNE_TERMINATION_LOG"]), report.to_json())
    if code == 143 and not line.get("wait_for_sigterm"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    return code


def progress(
    config: StageConfig, layout: Layout, line: dict[str, Any], number: int, *, saved: bool
) -> None:
    step = line.get("checkpoint")
    ref = None
    if saved and step is not None:
        ref = CheckpointRef(step=step, path=f"checkpoints/{number}/step-{step}", digest=DIGEST)
    shown = Progress(
        job_uid=config.job.uid,
        attempt=number,
        claim=number,
        phase="training",
        step=line.get("step", 0),
        total_steps=60,
        loss=1.5,
        checkpoint=ref,
    )
    write(layout.progress, shown.to_json())


def _count(layout: Layout, stage: str) -> int:
    """Which try of this stage it is, counted by files."""
    folder = layout.root / "scripted"
    folder.mkdir(exist_ok=True)
    number = len(list(folder.glob(f"{stage}-*"))) + 1
    (folder / f"{stage}-{number}").touch()
    return number


def write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(data), encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
