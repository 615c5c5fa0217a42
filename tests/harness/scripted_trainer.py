"""Stands for the trainer where the runner alone is tested: no model, no data, ends as it is told.

It is started as the trainer is, checks its configuration's digest as the trainer does, writes the
same reports, and then exits or dies as the script says (``FINETUNE_SCRIPT``: a JSON file with a
list of tries for each stage). A try may wait for SIGTERM before it ends. The standard library
alone, because it is started hundreds of times; who reads the reports validates them.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

DIGEST = "sha256:" + "a" * 64


def main() -> int:
    stage, _, config_file, _, digest = sys.argv[1:]
    config = json.loads(Path(config_file).read_text(encoding="utf-8"))
    form = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if digest != "sha256:" + hashlib.sha256(form.encode()).hexdigest() or config["stage"] != stage:
        return 10
    script = json.loads(Path(os.environ["FINETUNE_SCRIPT"]).read_text(encoding="utf-8"))
    folder = Path(config["mounts"]["workspace"])
    number = config["attempt"]["number"] if stage == "train" else _count(folder, stage)
    tries = script[stage]
    line = tries[min(number, len(tries)) - 1]
    return play(config, folder, line, script, number)


def play(
    config: dict[str, Any], folder: Path, line: dict[str, Any], script: dict[str, Any], number: int
) -> int:
    stage, uid = config["stage"], config["job"]["uid"]
    node = int(os.environ.get("FINETUNE_NODE_RANK", "0"))
    code = line["exits"][min(node, len(line["exits"]) - 1)]
    if line.get("wait_for_sigterm"):
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
        Path(script["waiting"]).write_text(str(os.getpid()), encoding="utf-8")
        until = time.monotonic() + 60
        while not stopped and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(line.get("saves_for", 0))
    if stage == "train" and node == 0:
        write(folder / "reports/progress.json", progress(uid, line, number))
    if stage == "prepare" and code == 0:
        write(folder / "reports/prepare.json", {"jobUid": uid, "choices": script["choices"]})
    if stage == "publish" and code == 0:
        write(folder / "reports/publish.json", completion(config))
    if code == 137:
        if line.get("reason") == "OOMKilled":  # what the kernel does before it kills
            Path(script["memory_events"]).write_text("oom_kill 1\n", encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)
    said = {
        "stage": stage,
        "jobUid": uid,
        "attempt": number,
        "node": node,
        "exitCode": code,
        "step": line.get("step", 0),
    }
    if line.get("code"):
        said["problems"] = [{"code": line["code"], "message": "said so", "fix": line["fix"]}]
    write(Path(os.environ["FINETUNE_TERMINATION_LOG"]), said)
    if code == 143 and not line.get("wait_for_sigterm"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    return int(code)


def progress(uid: str, line: dict[str, Any], number: int) -> dict[str, Any]:
    shown = {
        "jobUid": uid,
        "attempt": number,
        "claim": number,
        "phase": "training",
        "step": line.get("step", 0),
        "totalSteps": 60,
        "loss": 1.5,
    }
    step = line.get("checkpoint")
    if step is not None:
        path = f"checkpoints/{number}/step-{step}"
        shown["checkpoint"] = {"step": step, "path": path, "digest": DIGEST}
    return shown


def completion(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "job": config["job"]["name"],
        "jobUid": config["job"]["uid"],
        "uri": "output",
        "baseModel": "tiny",
        "baseDigest": DIGEST,
        "method": "lora",
        "objective": "sft",
        "merged": True,
        "selectedStep": 60,
        "steps": 60,
        "evaluationBefore": {"loss": 1.797},
        "evaluationAfter": {"loss": 1.03},
        "files": [],
        "time": "2026-01-01T00:00:00Z",
    }


def _count(folder: Path, stage: str) -> int:
    """Which try of this stage it is, counted by files."""
    tried = folder / "scripted"
    tried.mkdir(exist_ok=True)
    number = len(list(tried.glob(f"{stage}-*"))) + 1
    (tried / f"{stage}-{number}").touch()
    return number


def write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(data), encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
