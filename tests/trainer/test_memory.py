"""Verdicts on memory and disk, held to published tables, to real steps and to a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.job import JobSpec
from finetune_api.resolved import StageConfig
from finetune_trainer.errors import StageError
from finetune_trainer.memory import disk, estimate, trace, verdict
from finetune_trainer.memory.estimate import Estimate, Evaluated, Held
from finetune_trainer.methods import Counts
from harness.chat_rows import chat, chats, prepared
from harness.stage_config import SPEC, make_config, merged, one_step, write_rows
from harness.tiny_model import make_tiny_model

GIB = 1 << 30


def spec(**changes: Any) -> JobSpec:
    return JobSpec.model_validate(merged(SPEC, changes))


def config_of(root: Path, model: dict[str, Any], **changes: Any) -> StageConfig:
    """A job on a model of which there is a configuration and nothing else."""
    folder = root / "workspace" / "model" / "m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model))
    choices = one_step("model/m")
    return make_config(root, "train", changes, choices=choices)


CUDA = {"accelerator": {"device": "cuda", "perNode": 1}}
LLAMA_2_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


@pytest.mark.parametrize(
    ("stage", "nodes", "gigabytes"),
    [  # arXiv:1910.02054, table 1: 7.5 billion parameters
        (1, 8, 31.4),
        (2, 8, 16.6),
        (3, 8, 1.9),
        (1, 2, 35.6),
        (2, 2, 21.6),
        (3, 2, 7.5),
        (1, 128, 30.1),
        (3, 128, 0.12),
    ],
)
def test_the_table_of_the_zero_paper(stage: int, nodes: int, gigabytes: float) -> None:
    job = spec(
        method={"lora": None, "full": {}},
        training={"precision": "bf16"},
        parallelism={"ddp": None, "deepspeed": {"zeroStage": stage}},
        resources={"nodes": nodes, "processesPerNode": 8},
    )
    held = estimate.held(job, Counts(trainable=7_500_000_000, total=7_500_000_000))
    told = (held.weights + held.gradients + held.optimizer) / 1e9
    assert told == pytest.approx(gigabytes, rel=0.03)


def test_what_one_rank_holds() -> None:
    counts = Counts(trainable=10, total=1010)
    adapter = estimate.held(spec(training={"precision": "bf16"}), counts)
    # 1000 frozen in 2 bytes; 10 trained in 4, with gradients of 4 and two moments of 4.
    assert (adapter.weights, adapter.gradients, adapter.optimizer) == (2040, 40, 80)
    assert adapter.buffers == 0
    several = estimate.held(
        spec(training={"precision": "bf16"}, resources={"processesPerNode": 2}), counts
    )
    assert several.buffers == 40
    full = {"lora": None, "full": {}}
    everything = Counts(trainable=1000, total=1000)
    pure = estimate.held(spec(method=full, training={"precision": "pureBf16"}), everything)
    assert (pure.weights, pure.gradients, pure.optimizer) == (2000, 2000, 4000)
    sgd = estimate.held(spec(method=full, training={"optimizer": "sgd"}), everything)
    assert (sgd.weights, sgd.gradients, sgd.optimizer) == (4000, 4000, 0)
    offloaded = estimate.held(
        spec(
            method=full,
            training={"precision": "bf16"},
            parallelism={
                "ddp": None,
                "deepspeed": {
                    "zeroStage": 3,
                    "offloadOptimizer": "cpu",
                    "offloadParameters": "cpu",
                },
            },
            resources={"processesPerNode": 4},
        ),
        everything,
    )
    assert (offloaded.weights, offloaded.gradients, offloaded.optimizer) == (0, 500, 0)


def test_traced_within_5_percent_of_litgpt(tmp_path: Path) -> None:
    """LoRA on Llama-2-7B, 1304 tokens, bf16-true, no checkpointing: litgpt's measured table.

    ``tutorials/resource-tables.md``: peak of torch's allocator on an A100, without the context:
    21.30 GB with one sequence, 29.07 GB with two.
    """
    config = config_of(
        tmp_path,
        LLAMA_2_7B,
        method={
            "lora": {"r": 8, "alpha": 16, "dropout": 0.05, "targetModules": ["q_proj", "v_proj"]}
        },
        training={"precision": "pureBf16"},
        resources=CUDA,
    )
    found = estimate.estimate(config, 1304)
    assert found.how == "traced"
    peaks = [(found.peak(micro) - found.process) / 1e9 for micro in (1, 2)]
    assert peaks == pytest.approx([21.30, 29.07], rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training": {"gradientCheckpointing": True}},
        {"method": {"lora": None, "full": {}}},
        {"training": {"precision": "bf16"}},
        {"method": {"lora": None, "full": {}}, "training": {"precision": "bf16"}},
    ],
)
def test_a_fake_step_takes_what_a_real_step_takes(tmp_path: Path, changes: dict[str, Any]) -> None:
    from finetune_trainer import methods, model

    make_tiny_model(tmp_path / "volumes" / "models" / "tiny")
    config = make_config(tmp_path, "prepare", changes)
    real = methods.apply(model.load_model(config), config).train()
    measured = trace.step_peak(real, config, 2, 256)
    evaluating = trace.evaluation_peak(real, config, 2, 384)
    traced = trace.trace(config, 256, (2,), 384)
    assert traced.peaks == pytest.approx((measured,), rel=0.01)
    assert traced.evaluations == pytest.approx((evaluating,), rel=0.01)
    assert 2 * 384 * 400 * 4 * 2 < evaluating < measured  # logits and their softmax, in fp32
    assert traced.counts == methods.counts(real)


REAL = """
import resource, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(**eval(sys.argv[1])))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
ids = torch.randint(0, 1000, (int(sys.argv[2]), 512))
# What is resident now, not the peak so far: importing and building held more for a moment.
start = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
weights = sum(p.numel() * 4 for p in model.parameters())
for _ in range(2):
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start + weights)
"""


def test_the_prediction_holds_for_a_real_process(tmp_path: Path) -> None:
    """Peak resident memory of two AdamW steps, gradients kept, without the interpreter's own."""
    model = {
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    }
    config = config_of(
        tmp_path, {**model, "model_type": "llama"}, method={"lora": None, "full": {}}
    )
    found = estimate.estimate(config, 512)
    done = subprocess.run(
        [sys.executable, "-c", REAL, repr(model), "2"],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
        env={"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "PATH": "/usr/bin:/bin"},
    )
    measured = int(done.stdout)
    assert found.peak(2) - found.process == pytest.approx(measured, rel=0.2)


def test_what_cannot_be_traced_is_estimated_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("data-dependent router")

    config = config_of(
        tmp_path,
        {**LLAMA_2_7B, "num_hidden_layers": 8},
        training={"gradientCheckpointing": True},
        resources=CUDA,
    )
    traced = estimate.estimate(config, 2048)
    monkeypatch.setattr(estimate, "trace", refuse)
    rough = estimate.estimate(config, 2048)
    assert (traced.how, rough.how) == ("traced", "formula")
    assert rough.peak(1) == pytest.approx(traced.peak(1), rel=0.15)


def pretend(monkeypatch: pytest.MonkeyPatch, **over: int) -> None:
    """10 GiB of weights and 1 GiB of the process, 2 GiB a sequence."""

    def answer(config: StageConfig, length: int, evaluated: Evaluated | None = None) -> Estimate:
        per_sequence = 2 * GIB * length // 2048
        if config.job.spec.training.gradient_checkpointing:
            per_sequence //= 4
        held = Held(over.get("weights", 10) * GIB, 0, 0, 0, 0)
        passed = GIB * evaluated.length // 2048 if evaluated else 0
        return Estimate(held, 0, per_sequence, GIB, "traced", evaluated, 0, passed)

    monkeypatch.setattr(verdict, "estimate", answer)


def choose(root: Path, available: int | None, **training: Any) -> Any:
    changes = {"training": {"microBatchSize": None, **training}, "resources": CUDA}
    config = make_config(root, "prepare", changes)
    found = verdict.verdict(config, length=2048, global_batch_size=24, available=available)
    return config, *found


def test_the_largest_micro_batch_that_divides_and_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)
    _, report, micro, chosen = choose(tmp_path, 80 * GIB)
    assert (report.verdict, micro) == ("Fits", 8)  # 24 = 8 x 3; 1 + 10 + 16 = 27 GiB
    assert report.predicted_bytes == 27 * GIB
    assert report.message == "micro-batch 8 needs 27.0 GiB of 80.0 GiB a rank: fits"
    assert chosen[0].reason == (
        "needs 27.0 GiB of 80.0 GiB a rank: all that the global batch gives one rank at once"
    )
    # 90 % of 20 GiB are 18: 1 + 10 + 2 x 2 = 15 fits, 1 + 10 + 4 x 2 = 19 does not.
    _, report, micro, chosen = choose(tmp_path, 20 * GIB)
    assert micro == 2
    assert chosen[0].to_json() == {
        "field": "training.microBatchSize",
        "value": "2",
        "reason": "needs 15.0 GiB of 20.0 GiB a rank; 4 would need 19.0 GiB",
    }


def test_memory_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    _, report, micro, chosen = choose(tmp_path, None)
    assert (report.verdict, report.available_bytes, micro) == ("Unknown", None, 1)
    assert "set resources.accelerator.memory" in chosen[0].reason


@pytest.mark.parametrize(
    ("available", "training", "fix"),
    [
        (20, {"microBatchSize": 8}, "set training.microBatchSize to 2"),
        (13, {}, "set training.gradientCheckpointing to true"),
        (
            13,
            {"gradientCheckpointing": True, "microBatchSize": 4},
            "set training.microBatchSize to 1",
        ),
        # Of 12.6 that can be planned with one needs 13; two that are checkpointed need 12.
        (14, {"microBatchSize": 2}, "set training.gradientCheckpointing to true"),
        # Of 11.7 two that are checkpointed need 12, one 11.5.
        (
            13,
            {"microBatchSize": 2},
            "set training.gradientCheckpointing to true and training.microBatchSize to 1",
        ),
        (
            11,
            {"gradientCheckpointing": True},
            "use a smaller model or more memory; no single change of this job is enough",
        ),
    ],
)
def test_the_smallest_change_that_fits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    available: int,
    training: dict[str, Any],
    fix: str,
) -> None:
    pretend(monkeypatch)
    config, report, micro, _ = choose(tmp_path, available * GIB, **training)
    assert report.verdict == "DoesNotFit"
    with pytest.raises(StageError) as caught:
        verdict.require(config, report, micro, length=2048, available=available * GIB)
    assert caught.value.exit_code is ExitCode.DOES_NOT_FIT
    problem = caught.value.problems[0]
    assert (problem.code, problem.fix) == ("does-not-fit", fix)


def evaluating(root: Path, available: int, evaluated: Evaluated, **training: Any) -> Any:
    changes = {"training": {"microBatchSize": None, **training}, "resources": CUDA}
    config = make_config(root, "prepare", changes)
    room = {"available": available * GIB, "evaluated": evaluated}
    report, micro, _ = verdict.verdict(config, length=2048, global_batch_size=24, **room)
    problem = verdict.refusal(config, report, micro, length=2048, **room)
    return report, micro, problem


def test_what_is_evaluated_at_once_has_to_fit_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)
    # 1 + 10 GiB, 2 a sequence of a step; 4 a sequence of 8,192 tokens that is only evaluated.
    # 90 % of 40 GiB are 36: 8 are trained in 27 and evaluated in 43, 4 are evaluated in 27.
    report, micro, _ = evaluating(tmp_path, 40, Evaluated(8192, most=100))
    assert (report.verdict, micro) == ("Fits", 4)
    assert report.message == "evaluating 4 x 8,192 tokens needs 27.0 GiB of 40.0 GiB a rank: fits"
    # Two in all: no more are evaluated, and 8 x 2 of the step is more.
    report, micro, _ = evaluating(tmp_path, 40, Evaluated(8192, most=2))
    assert (micro, report.message[:13]) == (8, "micro-batch 8")
    # A batch of its own does not get smaller with the micro-batch.
    report, micro, problem = evaluating(tmp_path, 40, Evaluated(8192, most=100, batch_size=64))
    assert (report.verdict, micro) == ("DoesNotFit", 1)
    assert report.message == (
        "evaluating 64 x 8,192 tokens needs 267.0 GiB a rank, and 40.0 GiB are there, of which "
        "36.0 GiB can be planned with"
    )
    assert (problem.field, problem.fix) == (
        "spec.evaluation.batchSize",
        "set evaluation.batchSize to 4",  # 8 need 43
    )
    # Even one is too long: 1 + 10 + 16 of 19.8; with 16,384 tokens it needs 19.
    _, _, problem = evaluating(tmp_path, 22, Evaluated(32768, most=100), gradientCheckpointing=True)
    assert problem.fix == "set dataset.maxLength to 16384"


def test_preparation_looks_at_validation_rows(root: Path) -> None:
    long = chat("What is your name? " * 100, "I am Otto. " * 100)
    write_rows(root / "volumes" / "datasets" / "validation.jsonl", [long] * 8)
    sources = {"validation": {"sources": [{"uri": "pvc://datasets/validation.jsonl"}]}}
    spec = {
        "dataset": {**sources, "maxLength": 1000, "packing": False},
        "training": {"microBatchSize": None, "globalBatchSize": 16},
        "resources": {"memory": "64Gi"},
    }
    _, report = prepared(root, chats(32), spec)
    assert report.memory is not None
    assert report.choices is not None
    assert report.choices.micro_batch_size == 16
    # 8 rows of 1,000 tokens over a vocabulary of at least 380, logits and their softmax in fp32.
    activations = {part.name: part.bytes for part in report.memory.parts}["activations"]
    assert activations > 8 * 1000 * 380 * 4 * 2
    assert report.memory.message.startswith("evaluating 8 x 1,000 tokens needs ")


def test_shorter_sequences_and_sharding_are_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)
    # Checkpointed: 1 + 10 + 0.5 at 2048 tokens, 0.25 at 1024; 12.6 * 0.9 = 11.34.
    config, report, micro, _ = choose(tmp_path, int(12.6 * GIB), gradientCheckpointing=True)
    problem = verdict.refusal(config, report, micro, length=2048, available=int(12.6 * GIB))
    assert problem.fix == "set dataset.maxLength to 1024"
    changes = [
        change
        for change, *_ in verdict._changes(
            make_config(tmp_path, "prepare", {"resources": {"processesPerNode": 2}}), 1024
        )
    ]
    assert changes == [
        "set training.gradientCheckpointing to true",
        "set parallelism.deepspeed.zeroStage to 2",
        "set parallelism.deepspeed.zeroStage to 3",
        "set dataset.maxLength to 512 with gradientCheckpointing: true",
    ]


def test_memory_of_this_machine_and_of_its_control_group(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16000 kB\nMemAvailable:    8000 kB\n")
    assert verdict.machine_memory(tmp_path) == 8000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("100\n")
    assert verdict.machine_memory(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("5000000\n")
    assert verdict.machine_memory(tmp_path) == 4999900
    # 60 GiB of a model that was read lie in the cache, and can be had: 64 - (62 - 60).
    (tmp_path / "proc/meminfo").write_text(f"MemAvailable: {200 * GIB // 1024} kB\n")
    stat = "anon 7\ninactive_anon 5\ninactive_file {}\ntotal_inactive_file {}\n"
    (group / "memory.max").write_text(f"{64 * GIB}\n")
    (group / "memory.current").write_text(f"{62 * GIB}\n")
    (group / "memory.stat").write_text(stat.format(60 * GIB, 0))
    assert verdict.machine_memory(tmp_path) == 62 * GIB
    # The same of version 1, where it is the sum with all groups below that counts.
    for path in group.iterdir():
        path.unlink()
    (group / "memory").mkdir()
    (group / "memory/memory.limit_in_bytes").write_text(f"{64 * GIB}\n")
    (group / "memory/memory.usage_in_bytes").write_text(f"{62 * GIB}\n")
    (group / "memory/memory.stat").write_text(stat.format(1 * GIB, 60 * GIB))
    assert verdict.machine_memory(tmp_path) == 62 * GIB
    assert verdict.machine_memory() > 0


def test_ranks_of_a_node_share_its_memory(tmp_path: Path) -> None:
    config = make_config(
        tmp_path, "prepare", {"resources": {"memory": "8Gi", "processesPerNode": 2}}
    )
    assert verdict.available_bytes(config) == 4 * GIB
    config = make_config(
        tmp_path,
        "prepare",
        {"resources": {"accelerator": {"device": "cuda", "perNode": 2, "memory": "80Gi"}}},
    )
    assert verdict.available_bytes(config) == 80 * GIB


MIB = 1 << 20
SIZES = disk.Sizes(checkpoint=100 * MIB, snapshot=30 * MIB, output=200 * MIB)


def room(root: Path, free: int, **changes: Any) -> Any:
    config = make_config(root, "prepare", changes)
    report = disk.verdict(config, prepared_bytes=36 * MIB, free=lambda _: free, known=SIZES)
    return config, report


def test_room_on_the_disk(tmp_path: Path) -> None:
    # (3 kept + 2) x 100 + (3 + 2) x 30 + 36 + 64 of logs + 200 of output = 950 MiB
    _, report = room(tmp_path, 950 * MIB)
    assert (report.verdict, report.needed_bytes) == ("Fits", 950 * MIB)
    assert report.message == "the workspace needs 950.0 MiB, 950.0 MiB free"
    # Kept is one fewer: a checkpoint and its snapshot.
    _, report = room(tmp_path, 820 * MIB, checkpoint={"keep": 2})
    assert (report.verdict, report.needed_bytes) == ("Fits", 820 * MIB)
    problem = disk.refusal(*room(tmp_path, 820 * MIB), known=SIZES)
    assert problem.fix.startswith("set checkpoint.keep to 2, or free 130.0 MiB")
    config, report = room(tmp_path, 950 * MIB - 1)
    assert report.verdict == "DoesNotFit"
    with pytest.raises(StageError) as caught:
        disk.require(config, report, known=SIZES)
    assert caught.value.exit_code is ExitCode.STORAGE_FULL
    problem = caught.value.problems[0]
    assert (problem.code, problem.field) == ("no-room", "spec.checkpoint.keep")
    assert problem.message == "the workspace needs 950.0 MiB, 950.0 MiB free"
    assert problem.fix.startswith("set checkpoint.keep to 2, or free")
    config, report = room(tmp_path, 100 * MIB)
    problem = disk.refusal(config, report, known=SIZES)
    assert problem.message == "the workspace needs 950.0 MiB, 100.0 MiB free"
    assert problem.fix == "free 850.0 MiB, or use a larger volume (spec.workspace)"


def test_the_output_on_a_file_system_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_same_device", lambda one, other: False)
    config = make_config(tmp_path, "prepare", {"output": {"uri": "pvc://models/out"}})
    models = Path(config.mounts.volumes["models"])
    free = {models: 100 * MIB, Path(config.mounts.workspace): 750 * MIB}
    report = disk.verdict(config, prepared_bytes=36 * MIB, free=free.__getitem__, known=SIZES)
    assert (report.verdict, report.needed_bytes) == ("DoesNotFit", 200 * MIB)
    problem = disk.refusal(config, report, known=SIZES)
    assert problem.message == "the output (pvc://models/out) needs 200.0 MiB, 100.0 MiB free"
    assert problem.field == "spec.output.uri"


def test_sizes_of_a_real_job(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "volumes" / "models" / "tiny")
    file = (folder / "model.safetensors").stat().st_size
    lora = disk.sizes(make_config(tmp_path, "prepare"))
    # 4096 trained weights: 4 bytes, and 8 of AdamW's moments.
    assert (lora.snapshot, lora.checkpoint, lora.output) == (16384, 49152, file + 16384)
    config = make_config(tmp_path, "prepare")
    # Full, bf16: 2 bytes for the library, 2 again in the engine's file but where that is divided,
    # and 12 of masters and moments. A layer has 9,280 weights, the embeddings 25,600, a norm 32.
    weights = 2 * 9_280 + 25_600 + 32
    for stage, each in ((1, 16), (2, 16), (3, 14)):
        changes = {
            "method": {"lora": None, "full": {}},
            "training": {"precision": "bf16"},
            "parallelism": {"ddp": None, "deepspeed": {"zeroStage": stage}},
        }
        full = disk.sizes(make_config(tmp_path, "prepare", changes))
        assert (full.checkpoint, full.snapshot) == (each * weights, 2 * weights)
    # A second copy in another layout, as some repositories have, is no part of the output.
    (folder / "consolidated.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert disk.sizes(config).output == lora.output
    report = disk.verdict(config, prepared_bytes=0)
    assert report.free_bytes is not None
    assert report.free_bytes > 0
