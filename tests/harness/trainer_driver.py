"""Starts real trainer processes quickly: everything is imported once, and each run is forked.

    python tests/harness/trainer_driver.py

One JSON object a line on stdin: ``{"start": [arguments], "environment": {}, "log": path}`` answers
``{"pid": n}``; ``{"wait": pid, "seconds": s}`` answers ``{"code": n}``, null while it runs. A run is
a session of its own, with what ``finetune-trainer`` does in it; its ranks are forked from one
forkserver that all runs share, where a run of its own would import for some ten seconds first.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from multiprocessing import forkserver, set_forkserver_preload
from pathlib import Path


def start(arguments: list[str], environment: dict[str, str], log: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (stream, 1), (stream, 2)):
            os.dup2(source, target)
        os.environ.update(environment)
        tempfile.tempdir = None  # remembered from before the fork
        # It runs, but as the child of our parent: nobody but the parent can ask for it.
        forkserver._forkserver.ensure_running = forkserver.ensure_running = lambda: None
        from finetune_trainer.main import main

        code = int(main(arguments) or 0)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code
        if time.monotonic() >= end:
            return None
        time.sleep(0.01)


def drive() -> None:
    # What libraries print must not be taken for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # As the supervisor sets them: DeepSpeed reads these when it is imported.
    os.environ.update(
        DS_ACCELERATOR="cpu",
        LOCAL_SIZE="2",
        CUDA_VISIBLE_DEVICES="",
        OMP_NUM_THREADS="1",
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        ACCELERATE_USE_CPU="false",
        FINETUNE_PRELOAD_DEEPSPEED="1",
        FINETUNE_TRACE_SAMPLES="1",
    )
    set_forkserver_preload(["finetune_trainer.preload"])
    forkserver.ensure_running()

    import finetune_trainer.supervisor  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = start(request["start"], request["environment"], request["log"])
            answer = {"pid": pid}
        else:
            answer = {"code": wait(request["wait"], request["seconds"])}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    drive()
