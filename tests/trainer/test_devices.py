"""What torch and the kernel say of GPUs, on a machine where none is to be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api.checkpoint import CheckpointRef
from finetune_trainer import devices, optimizers
from finetune_trainer.devices import Seen
from finetune_trainer.errors import StageError
from harness.prepared_job import prepared_job

OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
    "GCC version:  gcc version 13.2.0\n"
)
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"


@pytest.mark.parametrize(
    ("text", "driver"),
    [(OPEN, "580.65.06"), (CLOSED, "550.54.15"), ("", None), (None, None)],
)
def test_the_driver_is_read_from_the_kernel(
    text: str | None, driver: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if text is not None:
        folder = tmp_path / "proc/driver/nvidia"
        folder.mkdir(parents=True)
        (folder / "version").write_text(text)
    seen = devices.look(tmp_path)
    assert (seen.driver, seen.capabilities) == (driver, ())
    assert seen.cuda is None or "sm_90" in seen.built_for
    assert seen.trouble
    assert "http" not in seen.trouble


def test_a_node_that_lost_its_gpus_does_not_end_a_job_that_has_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"resources": {"accelerator": {"device": "cuda", "perNode": 1}}}
    first = prepared_job(tmp_path, spec)
    assert first.attempt is not None
    known = CheckpointRef(step=4, path="checkpoints/1/step-4", digest="sha256:" + "a" * 64)
    later = first.model_copy(update={"attempt": first.attempt.model_copy(update={"known": known})})
    monkeypatch.setattr(devices, "look", lambda: Seen(cuda="13.0", trouble="GPU is lost"))
    for config, code in ((first, 10), (later, 1)):
        with pytest.raises(StageError) as caught:
            devices.check(config)
        assert caught.value.exit_code == code
        assert "GPU is lost" in caught.value.problems[0].message
    monkeypatch.setattr(devices, "look", lambda: Seen(((9, 0),), ("sm_90",), "13.0", "580.65.06"))
    devices.check(first)


def test_another_device_than_was_asked_for_is_never_trained_on(tmp_path: Path) -> None:
    config = prepared_job(tmp_path, {"resources": {"accelerator": {"device": "cuda"}}})
    devices.assert_in_use("cuda", config)
    with pytest.raises(StageError) as caught:
        devices.assert_in_use("cpu", config)
    assert caught.value.exit_code == 10
    assert caught.value.problems[0].message == (
        "device cuda was asked for, and cpu is what would be used"
    )


@pytest.mark.parametrize(("options", "kind"), [({}, "cpu"), ({"fused": True}, "cuda")])
def test_after_a_resume_steps_are_counted_where_torch_counts_them(
    options: dict[str, Any], kind: str
) -> None:
    """Tensors without contents stand for those on a GPU."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        weight = torch.nn.Parameter(torch.empty(3, device="cuda"))
        made: dict[str, Any] = {"lr": 1e-3, "fused": None, "capturable": False, **options}
        optimizer = torch.optim.AdamW([weight], lr=made["lr"])
        optimizer.param_groups[0].update(made)
        optimizer.state[weight] = {
            "step": torch.ones((), device="cuda"),
            "exp_avg": torch.zeros(3, device="cuda"),
        }
        optimizers.count_on_host(optimizer)
        state = optimizer.state[weight]
        assert state["step"].device.type == kind
        assert state["exp_avg"].device.type == "cuda"


def test_counts_that_are_numbers_or_not_there_stay() -> None:
    import torch

    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    optimizer.state[weights[0]] = {"step": 3}
    optimizers.count_on_host(optimizer)
    assert optimizer.state[weights[0]] == {"step": 3}
    assert weights[1] not in optimizer.state
