"""One rank, in this process: the loop, its loss, its evaluation, its ends."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from finetune_api.names import MANIFEST, Layout
from finetune_trainer import train as module
from finetune_trainer.data import cache
from finetune_trainer.data.collate import Collator
from finetune_trainer.order import epoch_order, step_digest
from harness.prepared_job import (
    FINGERPRINT,
    GLOBAL_BATCH,
    lines,
    prepared_job,
    progress,
    train_here,
    values,
    with_attempt,
)

FULL = {"method": {"lora": None, "full": {}}}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A job that ran to its end, and its outcome."""
    root = tmp_path_factory.mktemp("done")
    config = prepared_job(root)
    return config, train_here(config, root / "scratch")


def folder_of(config: Any) -> Path:
    return cache.folder_of(Layout(Path(config.mounts.workspace)).prepared, FINGERPRINT)


def token_loss(model: Any, rows: Any) -> tuple[float, int]:
    """Losses summed token by token, one document at a time, without any of the trainer's code."""
    total, count = 0.0, 0
    for row in rows:
        start = 0
        for length in row["lengths"]:
            ids = torch.tensor(row["input_ids"][start : start + length].astype("int64"))
            with torch.no_grad():
                logs = torch.log_softmax(model(ids[None]).logits[0].double(), dim=-1)
            for begin, end in row["spans"]:
                for position in range(max(int(begin), start + 1), min(int(end), start + length)):
                    at = position - start
                    total -= float(logs[at - 1, ids[at]])
                    count += 1
            start += int(length)
    return total, count


def test_it_ends_with_code_0_a_verified_checkpoint_and_its_progress(done: Any) -> None:
    config, outcome = done
    layout = Layout(Path(config.mounts.workspace))
    assert (outcome.code, outcome.message) == (0, "6 steps done")
    assert (layout.checkpoint(1, 6) / MANIFEST).is_file()
    assert '"reason": "end"' in (layout.checkpoint(1, 6) / MANIFEST).read_text()
    told = progress(config)
    assert (told.phase, told.step, told.total_steps, told.claim) == ("done", 6, 6, 1)
    assert told.checkpoint is not None
    assert told.checkpoint.path == "checkpoints/1/step-6"
    assert outcome.facts["checkpoint"] == told.checkpoint
    assert told.eta_seconds == 0
    assert told.tokens_per_second > 0
    assert told.goodput.productive > 0


def test_the_first_loss_is_token_losses_over_trained_tokens(done: Any) -> None:
    """At step 1 LoRA changes nothing yet, so that the base model alone gives the loss."""
    config, _ = done
    model = AutoModelForCausalLM.from_pretrained(config.mounts.volumes["models"] + "/tiny")
    rows = cache.PreparedDataset(folder_of(config) / "train")
    first = epoch_order(len(rows), 42, 0)[:GLOBAL_BATCH]
    total, count = token_loss(model.eval(), [rows[int(index)] for index in first])
    assert values(config, "loss")[1] == pytest.approx(total / count, abs=1e-5)


def test_evaluation_is_token_losses_over_trained_tokens(done: Any) -> None:
    config, _ = done
    model = AutoModelForCausalLM.from_pretrained(config.mounts.volumes["models"] + "/tiny")
    rows = cache.PreparedDataset(folder_of(config) / "validation")
    total, count = token_loss(model.eval(), [rows[index] for index in range(len(rows))])
    before = values(config, "evaluation")[0]
    assert before["loss"] == pytest.approx(total / count, abs=1e-6)
    assert before["tokens"] == count
    assert before["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-6)


def test_it_evaluates_before_every_so_often_and_at_the_end(done: Any) -> None:
    config, outcome = done
    assert sorted(values(config, "evaluation")) == [0, 3, 6]
    assert outcome.facts["evaluation"] == values(config, "evaluation")[6]
    assert progress(config).evaluation == values(config, "evaluation")[6]


def test_the_best_is_kept_beside_the_checkpoints(done: Any) -> None:
    config, _ = done
    evaluations = values(config, "evaluation")
    best = min((3, 6), key=lambda step: evaluations[step]["loss"])
    found = [
        path.name for path in Layout(Path(config.mounts.workspace)).checkpoints.glob("1/best-*")
    ]
    assert found == [f"best-{best}"]


def test_each_step_consumes_the_samples_of_the_global_order(done: Any) -> None:
    config, _ = done
    expected = {}
    for step in range(6):
        epoch, within = divmod(step, 37 // GLOBAL_BATCH)
        order = epoch_order(37, 42, epoch)
        expected[step + 1] = step_digest(
            order[within * GLOBAL_BATCH : (within + 1) * GLOBAL_BATCH].tolist()
        )
    assert values(config, "samples") == expected


def test_the_micro_batch_changes_neither_loss_nor_samples(done: Any, tmp_path: Path) -> None:
    config = prepared_job(tmp_path, micro_batch=4)
    assert train_here(config, tmp_path / "scratch").code == 0
    assert values(config, "samples") == values(done[0], "samples")
    assert values(config, "loss") == pytest.approx(values(done[0], "loss"), abs=1e-5)
    assert values(config, "gradientNorm") == pytest.approx(
        values(done[0], "gradientNorm"), rel=1e-4
    )


def test_without_packing_padding_changes_nothing(tmp_path: Path) -> None:
    losses = []
    for micro_batch in (1, 8):
        root = tmp_path / str(micro_batch)
        config = prepared_job(root, packing=False, micro_batch=micro_batch, steps=4)
        assert train_here(config, root / "scratch").code == 0
        losses.append(values(config, "loss"))
        assert progress(config).tokens_per_second > 0
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_full_fine_tuning_learns(tmp_path: Path) -> None:
    spec = {**FULL, "training": {"learningRate": 3e-3, "lrScheduler": "constant", "warmupSteps": 0}}
    config = prepared_job(tmp_path, spec, sequences=8, steps=20, validation=0)
    assert train_here(config, tmp_path / "scratch").code == 0
    losses = values(config, "loss")
    assert losses[20] < losses[1] - 0.5
    assert values(config, "evaluation") == {}


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(tmp_path: Path) -> None:
    spec = {**FULL, "training": {"precision": "bf16"}}
    config = prepared_job(tmp_path, spec, steps=2, validation=0)
    assert train_here(config, tmp_path / "scratch").code == 0
    saved = Layout(Path(config.mounts.workspace)).checkpoint(1, 2)
    from safetensors.torch import load_file

    weights = load_file(saved / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    exact = prepared_job(tmp_path / "fp32", FULL, steps=2, validation=0)
    assert train_here(exact, tmp_path / "scratch").code == 0
    found, wanted = values(config, "loss"), values(exact, "loss")
    assert found != wanted
    assert found == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({"training": {"precision": "fp16"}}, "precision-not-available"),
        (
            {
                "training": {"precision": "pureBf16"},
                "parallelism": {"ddp": None, "deepspeed": {"zeroStage": 1}},
            },
            "precision-not-available",
        ),
        ({"training": {"optimizer": "lion"}}, "not-supported-yet"),
    ],
)
def test_what_cannot_run_is_refused(spec: dict[str, Any], code: str, tmp_path: Path) -> None:
    outcome = train_here(prepared_job(tmp_path, spec), tmp_path / "scratch")
    assert outcome.code == 10
    assert [problem.code for problem in outcome.problems] == [code]


@pytest.mark.parametrize(("precision", "ranks"), [("fp32", 1), ("bf16", 1), ("fp32", 2)])
def test_a_job_for_gpus_never_trains_on_the_cpu(
    precision: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    spec = {
        "training": {"precision": precision},
        "resources": {"accelerator": {"device": "cuda", "perNode": ranks}},
    }
    config = prepared_job(tmp_path, spec, ranks=ranks, micro_batch=1)
    outcome = train_here(config, tmp_path / "scratch")
    assert outcome.code == 10
    assert [problem.code for problem in outcome.problems] == ["accelerator-not-usable"]
    assert outcome.message.startswith("device cuda was asked for, and torch cannot use a GPU: ")
    layout = Layout(Path(config.mounts.workspace))
    assert not layout.claims.exists(), "no claim was taken"
    assert not layout.metrics.exists()


def test_a_global_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    config = with_attempt(prepared_job(tmp_path), 1, 1, micro_batch=3)
    outcome = train_here(config, tmp_path / "scratch")
    assert outcome.code == 10
    assert outcome.message == (
        "globalBatchSize 8 cannot be divided by 1 ranks x microBatchSize 3 = 3"
    )
    assert not Layout(Path(config.mounts.workspace)).claims.exists(), "no claim was taken"


def test_fewer_ranks_than_asked_for_are_refused(tmp_path: Path) -> None:
    """Each would train alone, and all would believe that they train together."""
    outcome = train_here(prepared_job(tmp_path, ranks=2), tmp_path / "scratch")
    assert outcome.code == 10
    assert [problem.code for problem in outcome.problems] == ["engine-not-in-force"]


def test_an_engine_that_is_not_in_force_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library is made to ignore DeepSpeed's configuration, as it does with fsdp on a CPU."""
    monkeypatch.setattr(module.arguments, "deepspeed_config", lambda spec: None)
    monkeypatch.setattr(module.parallelism, "begin_deepspeed_on_cpu", lambda: None)
    spec = {"parallelism": {"ddp": None, "deepspeed": {"zeroStage": 2}}}
    outcome = train_here(prepared_job(tmp_path, spec), tmp_path / "scratch")
    assert outcome.code == 10
    assert outcome.problems[0].code == "engine-not-in-force"
    assert outcome.message.startswith("zero-2 was asked for, and ddp is what would run on 1 ranks")


def test_missing_prepared_data_is_said(tmp_path: Path) -> None:
    config = prepared_job(tmp_path)
    (folder_of(config) / MANIFEST).unlink()
    outcome = train_here(config, tmp_path / "scratch")
    assert outcome.code == 11
    assert outcome.problems[0].code == "prepared-data-missing"


def test_a_loss_that_is_no_number_ends_it_at_its_step_and_saves_nothing(tmp_path: Path) -> None:
    spec = {
        **FULL,
        "training": {"learningRate": 10, "lrScheduler": "constant", "warmupSteps": 0,
                     "maxGradNorm": 0, "optimizer": "sgd"},
        "checkpoint": {"everySteps": 1},
    }  # fmt: skip
    config = prepared_job(tmp_path, spec, steps=200, validation=0, sequences=8)
    with poisoned(step=3):
        outcome = train_here(config, tmp_path / "scratch")
    assert outcome.code == 13
    assert outcome.message == "the loss is nan at step 3; nothing of it was saved"
    layout = Layout(Path(config.mounts.workspace))
    assert sorted(path.name for path in layout.checkpoints.glob("1/step-*")) == ["step-1", "step-2"]
    assert max(values(config, "loss")) == 2


class poisoned:  # noqa: N801 - reads as a statement
    """Make the loss NaN from one step on."""

    def __init__(self, step: int) -> None:
        self._after = (step - 1) * GLOBAL_BATCH // 2

    def __enter__(self) -> None:
        self._real = module.losses.training_loss
        calls = 0

        def poisonous(smoothing: float) -> Any:
            real = self._real(smoothing)

            def loss(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                value = real(*args, **kwargs)
                return value * float("nan") if calls > self._after else value

            return loss

        module.losses.training_loss = poisonous

    def __exit__(self, *_: object) -> None:
        module.losses.training_loss = self._real


def test_a_finished_job_is_not_trained_again(done: Any, tmp_path: Path) -> None:
    config, _ = done
    before = len(lines(config))
    outcome = train_here(with_attempt(config, 2, 1, 2), tmp_path / "scratch")
    assert outcome.code == 0
    assert len(lines(config)) == before
    assert outcome.facts["resumed_from"].step == 6
    assert outcome.facts["step"] == 6


def test_the_collator_and_the_loss_agree_on_what_is_trained(done: Any) -> None:
    config, _ = done
    rows = cache.PreparedDataset(folder_of(config) / "train")
    batch = Collator(pad_token_id=0, packing=True)([rows[0], rows[1]])
    counted = int(module.losses.trained_tokens(batch["labels"]))
    model = AutoModelForCausalLM.from_pretrained(config.mounts.volumes["models"] + "/tiny").eval()
    total, count = token_loss(model, [rows[0], rows[1]])
    assert counted == count
    with torch.no_grad():
        batch.pop("sample_ids")
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits
    assert float(module.losses.token_losses(logits, labels)) == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("packing", [True, False])
def test_no_wait_for_the_device_between_logs(packing: bool, tmp_path: Path) -> None:
    """``_local_scalar_dense`` is what reads a tensor on the host, and so waits for a device.

    AdamW's own step counts and the loader's seed lie on the host on every device: left out.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    reads: dict[int, int] = {}

    class Count(TorchDispatchMode):
        step = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default and not on_the_host_anyway():
                reads[self.step] = reads.get(self.step, 0) + 1
            return func(*args, **(kwargs or {}))

    def on_the_host_anyway() -> bool:
        frame: Any = sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename.endswith(
                ("torch/optim/adamw.py", "torch/optim/adam.py", "utils/data/dataloader.py")
            ):
                return True
            frame = frame.f_back
        return False

    count = Count()

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            count.step = state.global_step + 1

    spec = {"training": {"loggingSteps": 5}}
    config = prepared_job(tmp_path, spec, steps=12, validation=0, packing=packing)
    real = module.trainer_class.of

    def with_count(base: Any) -> Any:
        made = real(base)

        class Counting(made):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.add_callback(Steps())

            def train(self, *args: Any, **kwargs: Any) -> Any:
                with count:
                    return super().train(*args, **kwargs)

        return Counting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.trainer_class, "of", with_count)
        assert train_here(config, tmp_path / "scratch").code == 0
    assert sorted(values(config, "loss")) == [1, 5, 10]
    # The last step is the exception: transformers reads the sum of losses once, when it is over.
    assert sorted(step for step in reads if step) == [1, 5, 10, 12]


@pytest.mark.parametrize("packing", [True, False])
def test_masks_decided_on_the_host_are_those_of_the_library(packing: bool, tmp_path: Path) -> None:
    config = prepared_job(tmp_path, packing=packing, validation=0)
    model = AutoModelForCausalLM.from_pretrained(config.mounts.volumes["models"] + "/tiny").eval()
    model.config.use_cache = False
    rows = cache.PreparedDataset(folder_of(config) / "train")
    collate = Collator(pad_token_id=0, packing=packing)
    for items in ([rows[0], rows[1], rows[2]], [rows[3]]):
        batch = collate(items)
        inputs = {name: batch[name] for name in batch if name not in ("labels", "sample_ids")}
        with torch.no_grad():
            wanted = model(**inputs).logits
            module.masks.drop_needless_mask(inputs)
            with module.masks.decided_on_host(packing):
                found = model(**inputs).logits
        real = batch["labels"].ne(-100)
        assert torch.allclose(found[real], wanted[real], atol=1e-6)
    assert packing or "attention_mask" not in inputs, "one row alone is not padded"
