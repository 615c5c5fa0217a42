"""What tests of whole training runs share: one driver, so that imports are paid for once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.tiny_model import make_tiny_model
from harness.trainer_runs import Driver, Job, make_job, trainer_driver


@pytest.fixture(scope="session")
def driver() -> Iterator[Driver]:
    with trainer_driver() as made:
        yield made


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A prepared job of two ranks (LoRA, DDP) that nobody runs: tests run copies of it."""
    return make_job(tmp_path_factory.mktemp("prepared"), "lora", "ddp")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model and its tokenizer, which nobody writes to."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def root(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder of volumes; the model is ``pvc://models/tiny``."""
    folder = tmp_path / "volumes" / "models"
    folder.mkdir(parents=True)
    (folder / "tiny").symlink_to(tiny_model)
    return tmp_path
