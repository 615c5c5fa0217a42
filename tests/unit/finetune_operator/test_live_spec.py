"""Fields that may change while the job runs: never further than its profile allows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from harness.looks import NAMESPACE, PROFILES, Looks
from harness.operator_driver import JOBS
from harness.played_runs import trains_forever

DEFAULT = {"finetune.dev/is-default-profile": "true"}


def looks_under(limits: dict[str, Any]) -> Looks:
    """Return a job that may run for an hour, under a profile with these limits."""
    looks = Looks(script=trains_forever)
    profile = {"metadata": {"name": "small", "annotations": DEFAULT}, "spec": {"limits": limits}}
    looks.api.create(PROFILES, profile)
    looks.create(activeDeadlineSeconds=3600, resources={"accelerator": {"perNode": 1}})
    looks.train()
    return looks


def remove_deadline(looks: Looks) -> None:
    path = f"{JOBS.format(namespace=NAMESPACE)}/bot"
    looks.api.objects[("finetunejobs", NAMESPACE, "bot")]["spec"].pop("activeDeadlineSeconds")
    looks.api.request("PATCH", path, {"spec": {}})


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"runtime": "2h"}, "7200 (2h) (limits.runtime)"),
        # One accelerator: half an hour less than the other limit.
        ({"runtime": "2h", "acceleratorHours": 1.5}, "5400 (1h30m) (limits.acceleratorHours)"),
    ],
)
def test_a_deadline_that_is_taken_away_still_counts_under_a_profile_that_limits_it(
    limits: dict[str, Any], most: str
) -> None:
    looks = looks_under(limits)
    remove_deadline(looks)
    looks.settle()
    assert looks.conditions()["Accepted"] == (
        "True",
        "Accepted",
        "spec.activeDeadlineSeconds: spec.activeDeadlineSeconds was removed; profile small allows"
        f" at most {most}, so 3600 (1h) stays [over-limit] fix: set activeDeadlineSeconds to at"
        f" most {most.rpartition(' ')[0]}, or ask who runs the cluster",
    )
    looks.ahead = timedelta(seconds=3700)
    for _ in range(6):
        looks.turn()
    assert looks.status["lastFailure"]["class"] == "DeadlineExceeded"
    assert looks.status["outcome"] == "Failed"


def test_a_deadline_that_nobody_asks_for_can_be_taken_away() -> None:
    looks = looks_under({"nodes": 4})
    remove_deadline(looks)
    looks.settle()
    looks.ahead = timedelta(seconds=3700)
    for _ in range(6):
        looks.turn()
    assert looks.conditions()["Accepted"] == ("True", "Accepted", "")
    assert looks.status["phase"] == "Running"
