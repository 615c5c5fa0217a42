"""What tests of whole training runs share: one driver, so that imports are paid for once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.trainer_runs import Driver, Job, make_job, trainer_driver


@pytest.fixture(scope="session")
def driver() -> Iterator[Driver]:
    with trainer_driver() as made:
        yield made


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A prepared job of two ranks (LoRA, DDP) that nobody runs: tests run copies of it."""
    return make_job(tmp_path_factory.mktemp("prepared"), "lora", "ddp")
