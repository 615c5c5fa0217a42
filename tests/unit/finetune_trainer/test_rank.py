"""The first moments of a rank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SIGNALLED_WHILE_IT_READS = """
import os, signal, sys
from finetune_trainer import rank

class Config:
    @staticmethod
    def model_validate_json(text):
        os.kill(os.getpid(), signal.SIGTERM)

rank.StageConfig = Config
rank.rank_main(sys.argv[1], sys.argv[2], os.getppid())
"""


def test_a_signal_as_soon_as_it_can_be_heard_is_no_crash(tmp_path: Path) -> None:
    """Its process id is known before it has read anything: whoever deletes a pod may be quick."""
    config = tmp_path / "job.json"
    config.write_text("{}")
    ended = subprocess.run(
        [sys.executable, "-c", SIGNALLED_WHILE_IT_READS, config, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (tmp_path / "0.pid").exists()
    assert (ended.returncode, ended.stderr) == (143, "")
