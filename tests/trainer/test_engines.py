"""Two ranks under every engine: the same samples, losses and gradient norms as one rank alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.names import Layout
from finetune_trainer.memory import disk
from harness.prepared_job import prepared_job, progress, train_here, values
from harness.stage_config import write_config
from harness.trainer_runs import ENGINES, METHODS, Driver, Run, trainer_driver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LEARNS = {"learningRate": 3e-3, "warmupSteps": 0}


def spec(method: str, engine: str, **training: Any) -> dict[str, Any]:
    return {
        "method": METHODS[method],
        "parallelism": ENGINES[engine],
        "training": {**LEARNS, **training},
    }


def start(driver: Driver, config: Any, root: Path) -> Run:
    """Start what ``Driver.start`` starts, for a job of ``prepared_job``."""
    file = write_config(config, root / "attempt.json")
    folder = root / "run"
    folder.mkdir()
    answer = driver.ask(
        start=["train", "--config", str(file), "--config-digest", config.digest],
        environment={"TMPDIR": str(folder)},
        log=str(folder / "out.log"),
    )
    run = Run(driver, answer["pid"], folder, folder / "out.log")
    (folder / "workspace").symlink_to(config.mounts.workspace)
    driver.runs.append(run)
    return run


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with trainer_driver() as made:
        yield made


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same job trained by one rank, by method."""
    out = {}
    for method in METHODS:
        root = tmp_path_factory.mktemp(f"alone-{method}")
        out[method] = prepared_job(root, spec(method, "ddp"), steps=6)
        assert train_here(out[method], root / "scratch").code == 0
    return out


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_train_what_one_does(
    method: str, engine: str, alone: dict[str, Any], driver: Driver, tmp_path: Path
) -> None:
    config = prepared_job(tmp_path, spec(method, engine), ranks=2, micro_batch=1, steps=6)
    run = start(driver, config, tmp_path)
    assert run.wait() == 0, run.tail()
    one = alone[method]
    assert values(config, "samples") == values(one, "samples")
    assert values(config, "loss") == pytest.approx(values(one, "loss"), abs=1e-5)
    assert values(config, "gradientNorm") == pytest.approx(values(one, "gradientNorm"), rel=1e-4)
    for step, metrics in values(one, "evaluation").items():
        assert values(config, "evaluation")[step] == pytest.approx(metrics, rel=1e-5)
    told = progress(config)
    assert (told.phase, told.step, told.loss is not None) == ("done", 6, True)
    assert told.checkpoint is not None
    assert told.checkpoint.world_size == 2
    folder = Layout(Path(config.mounts.workspace)).root / told.checkpoint.path
    assert ("global_step6" in {path.name for path in folder.iterdir()}) == (engine != "ddp")


@pytest.mark.parametrize("engine", ["ddp", "zero-2", "zero-3"])
def test_bf16_under_every_engine(engine: str, driver: Driver, tmp_path: Path) -> None:
    config = prepared_job(
        tmp_path, spec("full", engine, precision="bf16"), ranks=2, micro_batch=1, steps=4
    )
    run = start(driver, config, tmp_path)
    assert run.wait() == 0, run.tail()
    saved = progress(config).checkpoint
    assert saved is not None
    folder = Layout(Path(config.mounts.workspace)).root / saved.path
    written = [p for p in folder.rglob("*") if p.suffix in {".pt", ".safetensors"}]
    size = sum(path.stat().st_size for path in written)
    # What comes to so few weights of a model is the library's own: some 40 kB.
    assert disk.sizes(config).checkpoint == pytest.approx(size - 20_000, abs=20_000)
    losses = values(config, "loss")
    exact = prepared_job(tmp_path / "exact", spec("full", "ddp"), steps=4)
    assert train_here(exact, tmp_path / "scratch").code == 0
    wanted = values(exact, "loss")
    assert losses != wanted
    assert losses == pytest.approx(wanted, abs=0.05)


def test_a_rank_without_numbers_ends_all_with_13(driver: Driver, tmp_path: Path) -> None:
    """Weights that are no numbers in the base: the evaluation before training meets them first."""
    from safetensors.torch import load_file, save_file

    config = prepared_job(tmp_path, spec("lora", "ddp"), ranks=2, micro_batch=1, validation=0)
    path = Path(config.mounts.volumes["models"]) / "tiny" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    run = start(driver, config, tmp_path)
    assert run.wait() == 13, run.tail()
    assert "at step 1; nothing of it was saved [non-finite-loss]" in run.log.read_text()
    assert "Traceback" not in run.log.read_text()
    layout = Layout(Path(config.mounts.workspace))
    assert not list(layout.checkpoints.glob("*/*"))
    assert "Traceback" in (layout.logs / "train-1-0.log").read_text()
