"""What a profile adds to the requests of pods is what the API server takes."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.resolve import profile_problems, resolve
from harness.resolving import job, profile, refused

PLACE = "spec.platform.extraResources"


def added(resources: dict[str, Any]) -> dict[str, Any]:
    return profile({"platform": {"extraResources": resources}})


@pytest.mark.parametrize(
    "resources",
    [
        {"rdma/hca": 1, "vpc.amazonaws.com/efa": "4"},
        {"hugepages-2Mi": "5Gi", "hugepages-1Gi": 2**30},
        {"a" * 244 + "/hca": 1},
    ],
)
def test_devices_and_pages(resources: dict[str, Any]) -> None:
    assert profile_problems(added(resources)) == []


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        (
            {"foo": 1},
            (
                f"{PLACE}.foo",
                "wrong-format",
                "write the name of a device, such as rdma/hca, hugepages-2Mi, or ephemeral-storage",
            ),
        ),
        (
            {"cpu": 1},
            (
                f"{PLACE}.cpu",
                "wrong-format",
                "write the name of a device, such as rdma/hca, hugepages-2Mi, or ephemeral-storage",
            ),
        ),
        (
            {"rdma/hca": "500m"},
            (f"{PLACE}[rdma/hca]", "wrong-format", "write a whole number such as 1, or 2Gi"),
        ),
        (
            {"requests.example.com/gpu": 1},
            (f"{PLACE}[requests.example.com/gpu]", "resource-of-quota", "write example.com/gpu"),
        ),
        (
            {"a" * 245 + "/hca": 1},
            (
                f"{PLACE}[{'a' * 245}/hca]",
                "wrong-format",
                "write at most 248 characters",
            ),
        ),
        (
            {"hugepages-2Mi": "3Mi"},
            (f"{PLACE}.hugepages-2Mi", "pages-not-whole", "write a multiple of 2Mi"),
        ),
    ],
)
def test_what_the_api_server_would_refuse_once_all_is_prepared(
    resources: dict[str, Any], told: tuple[str, str, str]
) -> None:
    assert [(one.field, one.code, one.fix) for one in profile_problems(added(resources))] == [told]


def test_huge_pages_need_memory_or_cpu_beside_them() -> None:
    pages = added({"hugepages-2Mi": "5Gi"})
    assert refused(job(), [pages]) == [
        (
            "spec.resources.memory",
            "pages-need-memory",
            "the profile adds hugepages-2Mi, which a pod gets only beside memory or cpu",
            "set resources.memory",
        )
    ]
    assert resolve(job({"resources": {"memory": "64Gi"}}), [pages]).spec.resources.memory == "64Gi"
    assert resolve(job(), [added({"rdma/hca": 1})]).spec.resources.memory is None


@pytest.mark.parametrize("size", ["0", 0, "0.0Gi", "500m"])
def test_a_limit_that_would_choose_a_volume_of_nothing(size: Any) -> None:
    (problem,) = profile_problems(profile({"limits": {"workspace": size}}))
    assert (problem.field, problem.code) == ("spec.limits.workspace", "wrong-format")
    assert problem.fix == "write a size that is more than nothing, such as 80Gi"
