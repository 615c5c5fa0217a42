from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from finetune_api.resolved import Attempt, StageConfig
from finetune_trainer import launch
from finetune_trainer.errors import StageError
from harness.stage_config import make_config


def config(tmp_path: Path, ranks: int = 2, nodes: int = 1, **spec: Any) -> StageConfig:
    attempt = Attempt(number=1, nodes=nodes, processes_per_node=ranks, micro_batch_size=1)
    return make_config(tmp_path, "train", spec, attempt=attempt)


def test_on_a_cpu_deepspeed_finds_its_ranks_and_no_gpu(tmp_path: Path) -> None:
    values = launch.settings(config(tmp_path), cores=6)
    assert values["DS_ACCELERATOR"] == "cpu"
    assert values["LOCAL_SIZE"] == "2"
    assert values["CUDA_VISIBLE_DEVICES"] == ""
    assert values["OMP_NUM_THREADS"] == "3"


def test_on_an_accelerator_its_devices_are_left_alone(tmp_path: Path) -> None:
    spec = {"resources": {"accelerator": {"device": "cuda", "perNode": 2}}}
    values = launch.settings(config(tmp_path, **spec), cores=1)
    assert "CUDA_VISIBLE_DEVICES" not in values
    assert "DS_ACCELERATOR" not in values
    assert values["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu.max": "800000 100000"}, 4),
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({}, 4),
    ],
)
def test_a_limit_of_the_control_group_counts_beside_the_machine_s_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert launch.cores(tmp_path) == cores


def test_training_is_offline_and_tells_nobody(tmp_path: Path) -> None:
    values = launch.settings(config(tmp_path), cores=1)
    assert values["HF_HUB_OFFLINE"] == "1"
    assert values["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert values["DO_NOT_TRACK"] == "1"


def test_a_node_s_rank_does_not_leak_into_its_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in launch.settings(config(tmp_path), cores=1):
        monkeypatch.setenv(name, "before")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    launch.apply(config(tmp_path))
    import os

    assert "RANK" not in os.environ
    assert "WORLD_SIZE" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "7", "what the user set stays"
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_one_node_meets_on_a_free_port() -> None:
    assert launch.rendezvous(1, {"MASTER_ADDR": "elsewhere"}) == launch.Rendezvous(
        "c10d", "127.0.0.1:0", 0, "127.0.0.1"
    )


def test_several_nodes_meet_at_the_first() -> None:
    environ = {"FINETUNE_NODE_RANK": "1", "MASTER_ADDR": "job-1-worker-0", "MASTER_PORT": "23456"}
    assert launch.rendezvous(2, environ) == launch.Rendezvous(
        "static", "job-1-worker-0:23456", 1, None
    )


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"MASTER_PORT": "1"},
            "FINETUNE_NODE_RANK and MASTER_ADDR not set, and the attempt has 2 nodes",
        ),
        (
            {"FINETUNE_NODE_RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "FINETUNE_NODE_RANK is '2', not one of 0 to 1",
        ),
        (
            {"FINETUNE_NODE_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "tcp://1"},
            "MASTER_PORT is 'tcp://1', not a number",
        ),
    ],
)
def test_a_wrong_environment_is_said(environ: dict[str, str], message: str) -> None:
    with pytest.raises(StageError) as caught:
        launch.rendezvous(2, environ)
    assert caught.value.exit_code == 10
    assert caught.value.problems[0].message == message


OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def test_mpirun_s_names_become_torch_s() -> None:
    assert launch.under_mpi(OPEN_MPI)
    assert launch.mpi_environment({**OPEN_MPI, "MASTER_ADDR": "job-1-worker-0"}) == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "job-1-worker-0",
        "MASTER_PORT": "29500",
    }


def test_mpirun_over_nodes_needs_an_address() -> None:
    with pytest.raises(StageError, match="MASTER_ADDR not set"):
        launch.mpi_environment(OPEN_MPI)


def test_no_mpirun() -> None:
    assert not launch.under_mpi({"RANK": "0"})
    with pytest.raises(StageError, match="OMPI_COMM_WORLD_SIZE"):
        launch.mpi_environment({"OMPI_COMM_WORLD_RANK": "0"})


def test_a_name_that_never_resolves_ends_the_wait() -> None:
    began = time.monotonic()
    with pytest.raises(StageError) as caught:
        launch.wait_for_name("no-such-host.invalid", 0.0)
    assert caught.value.exit_code == 20
    assert time.monotonic() - began < 30
    launch.wait_for_name("127.0.0.1", 0.0)
