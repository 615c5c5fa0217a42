"""Every file under examples/ runs to its end; a two-layer model stands in for the real one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.tiny_model import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
MODEL = "smollm2-135m-instruct"

# Steps by hand. quickstart: 60 rows / 4 = 15 a pass, 4 passes. full-sft and zero3: 24 rows, a
# quarter held out leaves 18; 18 / 4 = 4 whole batches a pass, 2 passes. multi-turn: 8 + 8 rows, a
# quarter held out leaves 12; 12 / 4 = 3 a pass, 2 passes.
RUNS = {
    "quickstart/quickstart.yaml": {"method": "lora", "merged": True, "steps": 60, "world": 1},
    "full-sft.yaml": {"method": "full", "merged": False, "steps": 8, "world": 1},
    "multi-turn.yaml": {"method": "lora", "merged": True, "steps": 6, "world": 1},
    "zero3.yaml": {"method": "full", "merged": False, "steps": 8, "world": 2},
}


ON_A_CLUSTER = {"quickstart.yaml", "claims.yaml"}
"""Run by the end-to-end tests."""


def test_every_example_is_listed() -> None:
    found = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.yaml")}
    assert found == set(RUNS) | ON_A_CLUSTER


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / MODEL)
    return folder


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", RUNS)
def test_example_runs(name: str, models: Path, tmp_path: Path) -> None:
    expected = RUNS[name]
    command = [sys.executable, "-m", "finetune_cli.main", "run", str(EXAMPLES / name)]
    command += ["--volume", f"models={models}", "--volume", f"datasets={EXAMPLES / 'datasets'}"]
    command += ["--workspace", str(tmp_path)]

    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )

    (job,) = (path for path in tmp_path.iterdir() if path.is_dir())
    logs = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in job.glob("logs/*.log"))
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}\n{logs}"
    status = json.loads((job / "status.json").read_text())["status"]
    assert (status["outcome"], status["attempt"]) == ("Succeeded", 1)
    manifest = json.loads((job / "output" / "manifest.json").read_text())
    assert (manifest["method"], manifest["merged"]) == (expected["method"], expected["merged"])
    assert manifest["steps"] == expected["steps"]
    assert status["checkpoint"]["worldSize"] == expected["world"]
    assert manifest["evaluationAfter"]["loss"] < manifest["evaluationBefore"]["loss"]
    assert (job / "output" / "model.safetensors").is_file()
    assert (job / "output" / "report.html").is_file()
    assert (job / "output" / "adapter").is_dir() == expected["merged"]
