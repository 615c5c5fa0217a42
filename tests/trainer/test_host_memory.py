"""Memory of a node that ranks on accelerators need: counted, measured, and said in time."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem
from finetune_api.resolved import StageConfig
from finetune_trainer.memory import host, verdict
from harness.chat_rows import chats, prepared, refused
from harness.stage_config import make_config, merged, one_step, write_config
from harness.tiny_model import make_tiny_model

CHOICES = one_step("model/m")
FULL = {"lora": None, "full": {}}
EIGHT = {"accelerator": {"device": "cuda", "perNode": 8}, "processesPerNode": 8}
PARAMETERS = 8_030_261_248
"""Of Llama 3.1 8B."""


def zero(stage: int) -> dict[str, Any]:
    return {"ddp": None, "deepspeed": {"zeroStage": stage}}


def job(root: Path, stored: str = "BF16", **changes: Any) -> StageConfig:
    """A full fine-tuning of 8 billion parameters on 8 ranks: the heads of its files, and no more."""
    folder = root / "workspace" / "model" / "m"
    folder.mkdir(parents=True, exist_ok=True)
    size = {"BF16": 2, "F16": 2, "F32": 4}[stored] * PARAMETERS
    entry = {"dtype": stored, "shape": [PARAMETERS], "data_offsets": [0, size]}
    head = json.dumps({"weights": entry}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + size)  # nothing is written there, and nothing is taken
    spec = {
        "method": FULL,
        "training": {"precision": "bf16"},
        "parallelism": zero(2),
        "resources": {**EIGHT, "memory": "256Gi"},
    }
    return make_config(root, "train", merged(spec, changes), choices=CHOICES)


@pytest.mark.parametrize(
    ("stored", "changes", "bytes_a_parameter"),
    [
        ("BF16", {}, 4),  # full: trained in fp32
        ("BF16", {"parallelism": zero(1)}, 4),
        ("BF16", {"parallelism": zero(3)}, 0),
        ("BF16", {"parallelism": None, "training": {"precision": "fp32"}}, 4),
        ("BF16", {"parallelism": None, "training": {"precision": "pureBf16"}}, 0),
        ("F32", {}, 0),
        ("F32", {"parallelism": None, "training": {"precision": "pureBf16"}}, 2),
        ("BF16", {"method": {"full": None, "lora": {}}}, 0),
        ("F16", {"method": {"full": None, "lora": {}}}, 2),
    ],
)
def test_what_a_rank_holds_when_it_has_loaded(
    tmp_path: Path, stored: str, changes: dict[str, Any], bytes_a_parameter: int
) -> None:
    config = job(tmp_path, stored, **changes)
    assert host.loaded(config) == PARAMETERS * bytes_a_parameter
    # 8 of them, and 1.2 GiB of libraries.
    assert host.needed(config) == 8 * PARAMETERS * bytes_a_parameter + 1_288_490_188


def test_a_second_copy_of_the_weights_is_not_loaded(tmp_path: Path) -> None:
    from finetune_trainer.export import merge

    config = job(tmp_path)
    folder = tmp_path / "workspace" / "model" / "m"
    os.link(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert host.loaded(config) == PARAMETERS * 4
    assert merge.parameters(folder) == PARAMETERS + 47  # the head has 94 bytes


def test_as_deepspeed_estimates_it(tmp_path: Path) -> None:
    """``estimate_zero2_model_states_mem_needs_all_cold(8030e6, 8)``: 239.3 GB a node, factor 1."""
    found = host.needed(job(tmp_path)) - host.CPU_PROCESS
    assert found / 2**30 == pytest.approx(239.3, abs=0.05)


@pytest.mark.parametrize(
    ("memory", "severity"), [("300Gi", None), ("267Gi", "warning"), ("240Gi", "error")]
)
def test_what_is_named_is_compared(tmp_path: Path, memory: str, severity: str | None) -> None:
    # 8 x 4 x 8.03e9 = 239.32 GiB, and 1.2: nine tenths of 267.3 GiB.
    found = host.problem(job(tmp_path, resources={"memory": memory}))
    assert (None if found is None else found.severity) == severity


def test_both_figures_and_the_smallest_change(tmp_path: Path) -> None:
    found = host.problem(job(tmp_path, resources={"memory": "128Gi"}))
    assert found == Problem(
        code="node-memory-too-small",
        message="loading the model needs 240.5 GiB of a node's memory (8 x 29.9 GiB of weights, and "
        "the libraries), and resources.memory is 128.0 GiB",
        fix="set resources.memory: 268Gi, or parallelism: {deepspeed: {zeroStage: 3}}, which "
        "divides the weights as it loads",
        field="spec.resources.memory",
    )


def test_one_rank_has_nothing_to_divide(tmp_path: Path) -> None:
    one = {"processesPerNode": 1, "accelerator": {"perNode": 1}, "memory": "16Gi"}
    found = host.problem(job(tmp_path, parallelism=None, resources=one))
    assert found is not None
    assert found.message == (
        "loading the model needs 31.1 GiB of a node's memory (1 x 29.9 GiB of weights, and the "
        "libraries), and resources.memory is 16.0 GiB"
    )
    assert found.fix == "set resources.memory: 35Gi"


@pytest.mark.parametrize(
    "resources", [{"memory": None}, {"memory": "1Gi", "accelerator": {"device": "cpu"}}]
)
def test_what_is_not_compared(tmp_path: Path, resources: dict[str, Any]) -> None:
    """A pod without a limit has its node's memory; on a CPU the verdict on a step has it all."""
    assert host.problem(job(tmp_path, resources=resources)) is None


def test_no_zero_is_offered_to_16_bit_training(tmp_path: Path) -> None:
    changes = {"parallelism": {"deepspeed": None, "ddp": {}}, "training": {"precision": "pureBf16"}}
    config = job(tmp_path, "F32", **changes, resources={"memory": "64Gi"})
    found = host.problem(config)
    assert found is not None
    assert found.fix == "set resources.memory: 135Gi"  # (8 x 2 x 8.03e9 / 2^30 + 1.2) / 0.9
    assert not [change for change, *_ in verdict._changes(config, 512) if "zeroStage" in change]


LOAD = """
import json, re, sys
from finetune_trainer.start import leave_out
leave_out()
from pathlib import Path
from finetune_api.resolved import StageConfig
from finetune_trainer import model
from finetune_trainer.memory import host
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
found = []
for path in sys.argv[1:]:
    config = StageConfig.model_validate_json(Path(path).read_bytes())
    if not found:
        model.load_model(config)  # what the first load imports
    before = anonymous()
    network = model.load_model(config)
    for weight in network.parameters():
        weight.sum()
    found.append((anonymous() - before, host.loaded(config)))
    del network
print(json.dumps(found))
"""


def test_the_count_is_what_a_process_takes(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "volumes" / "models" / "tiny", hidden_size=512, layers=4)
    files = []
    for precision in ("fp32", "pureBf16"):
        changes = {"method": FULL, "training": {"precision": precision}}
        config = make_config(tmp_path, "prepare", changes)
        files.append(str(write_config(config, tmp_path / f"{precision}.json")))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *files],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    (mapped, nothing), (converted, counted) = json.loads(done.stdout.splitlines()[-1])
    assert nothing == 0
    assert mapped < 0.1 * counted
    assert converted == pytest.approx(counted, rel=0.1)
    # 4 layers of 2,360,320, two embeddings of 400 x 512, a norm of 512; 2 bytes each.
    assert counted == 2 * (4 * 2_360_320 + 2 * 400 * 512 + 512)


def small(memory: str) -> dict[str, Any]:
    return {
        "training": {"precision": "bf16", "microBatchSize": None},
        "method": FULL,
        "resources": {"accelerator": {"device": "cuda", "perNode": 1}, "memory": memory},
    }


def test_preparation_refuses_and_warns(root: Path) -> None:
    code, report = refused(root, chats(20), small("1Gi"))
    assert code == ExitCode.DOES_NOT_FIT
    assert [problem.code for problem in report.problems] == ["node-memory-too-small"]
    assert report.memory is not None
    assert report.memory.verdict == "DoesNotFit"
    _, report = prepared(root, chats(20), small("1300Mi"))
    assert [(p.code, p.severity) for p in report.problems[:1]] == [
        ("node-memory-too-small", "warning")
    ]
    assert report.choices is not None
    _, report = prepared(root, chats(20), small("2Gi"))
    assert "node-memory-too-small" not in [problem.code for problem in report.problems]


def test_both_memories_are_told(root: Path) -> None:
    spec = merged(small("1Gi"), {"resources": {"accelerator": {"memory": "1Gi"}}})
    code, report = refused(root, chats(20), spec)
    assert code == ExitCode.DOES_NOT_FIT
    assert [p.code for p in report.problems] == ["does-not-fit", "node-memory-too-small"]
