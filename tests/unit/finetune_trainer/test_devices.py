"""What a node's GPUs must be, decided from what torch would say of them."""

from __future__ import annotations

import pytest

from finetune_trainer.devices import Seen, covered, problem

WHEEL = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")


def seen(*capabilities: tuple[int, int]) -> Seen:
    return Seen(capabilities, WHEEL, "13.0", "580.65.06")


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((7, 5), WHEEL, True),
        ((8, 9), WHEEL, True),  # by sm_86
        ((9, 0), WHEEL, True),
        ((10, 3), WHEEL, True),
        ((12, 1), WHEEL, True),
        ((7, 0), WHEEL, False),  # V100: sm_75 is later
        ((6, 1), WHEEL, False),
        ((11, 0), WHEEL, False),
        ((13, 0), WHEEL, False),
        ((13, 0), (*WHEEL, "compute_120"), True),
        ((12, 0), ("compute_121",), False),
        ((9, 0), ("sm_90a",), True),
        ((10, 3), ("sm_100a",), False),
        ((10, 3), ("sm_100f",), True),
        ((9, 4), ("gfx942",), True),  # another maker's names say nothing
    ],
)
def test_code_for_one_gpu_runs_on_another(
    capability: tuple[int, int], built_for: tuple[str, ...], runs: bool
) -> None:
    assert covered(capability, built_for) is runs


def test_gpus_that_can_be_used_are_no_problem() -> None:
    assert problem(seen((9, 0)), 1) is None
    assert problem(seen((9, 0), (9, 0), (7, 0)), 2) is None, "nobody trains on the third"


def test_a_driver_that_is_too_old_is_named() -> None:
    old = Seen(
        (),
        WHEEL,
        "13.0",
        "550.54.15",
        "The NVIDIA driver on your system is too old (found version 12040)",
    )
    found = problem(old, 1)
    assert found is not None
    assert (found.code, found.field) == (
        "accelerator-not-usable",
        "spec.resources.accelerator.device",
    )
    assert found.message == (
        "device cuda was asked for, and torch cannot use a GPU: The NVIDIA driver on your system "
        "is too old (found version 12040) (torch is built with CUDA 13.0; driver: 550.54.15)"
    )
    assert found.fix.startswith("CUDA 13.0 needs a driver 580 or newer on the node")


def test_a_torch_without_cuda_is_named() -> None:
    found = problem(Seen(trouble="Torch not compiled with CUDA enabled"), 1)
    assert found is not None
    assert found.message.endswith(
        "Torch not compiled with CUDA enabled (torch is built with no CUDA; driver: not seen)"
    )
    assert found.fix.startswith("use the trainer's image, whose torch is built with CUDA, and")


def test_each_rank_needs_a_gpu() -> None:
    found = problem(seen((9, 0)), 2)
    assert found is not None
    assert found.message.startswith(
        "2 ranks of this node need a GPU each, and torch can use 1 (torch is built"
    )
    assert (found.code, found.field) == (
        "too-few-accelerators",
        "spec.resources.processesPerNode",
    )


def test_a_gpu_that_torch_has_no_kernels_for_is_refused_before_its_first() -> None:
    found = problem(seen((9, 0), (7, 0)), 2)
    assert found is not None
    assert found.code == "accelerator-not-supported"
    assert found.message == (
        "GPU 1 has capability 7.0, and torch has kernels for sm_75 sm_80 sm_86 sm_90 sm_100 "
        "sm_120 (torch is built with CUDA 13.0; driver: 580.65.06)"
    )
