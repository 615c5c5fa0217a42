"""What the profile that pages give to begin with makes of short jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.resolve import resolve
from harness.resolving import job, profile

VALUES = Path(__file__).parents[3] / "docs" / "operate" / "files" / "profile.values.yaml"
LABELS = {"finetune.dev/enabled": "true"}


@pytest.fixture
def standard() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(VALUES.read_text(encoding="utf-8"))
    (written,) = values["profiles"]
    return profile(written["spec"], written["name"])


def test_pods_of_the_shortest_job_ask_for_memory_and_its_card_is_known(
    standard: dict[str, Any],
) -> None:
    found = resolve(job(), [standard], LABELS).spec.resources
    assert (found.cpu, found.memory, found.accelerator.memory) == ("8", "64Gi", "40Gi")
    assert found.preparation is not None
    assert (found.preparation.cpu, found.preparation.memory) == ("2", "8Gi")
    assert found.publishing is not None
    assert (found.publishing.cpu, found.publishing.memory) == ("4", "48Gi")


def test_what_a_job_names_wins_part_by_part(standard: dict[str, Any]) -> None:
    wanted = {"accelerator": {"device": "cpu", "perNode": 0}, "publishing": {"memory": "96Gi"}}
    found = resolve(job({"resources": wanted}), [standard], LABELS).spec.resources
    assert (found.accelerator.device, found.accelerator.per_node) == ("cpu", 0)
    assert found.publishing is not None
    assert (found.publishing.cpu, found.publishing.memory) == ("4", "96Gi")


def test_no_job_is_deleted_and_made_again_by_who_keeps_it_in_git(standard: dict[str, Any]) -> None:
    assert resolve(job(), [standard], LABELS).spec.ttl_seconds_after_finished is None
