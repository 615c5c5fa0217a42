"""Events are read once for all jobs that wait at the same time, and not for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from finetune_operator.hindrances import Hindrances
from finetune_operator.kube import Forbidden, Page, Resource


class Slow:
    """Takes so many seconds for an answer, by a clock that nothing else moves."""

    def __init__(self, seconds: float) -> None:
        self.now = 50.0
        self.seconds = seconds
        self.asked: list[tuple[str, str | None, str]] = []
        self.error: Exception | None = None

    def clock(self) -> float:
        return self.now

    async def pages(
        self, resource: Resource, namespace: str | None = None, *, fields: str = ""
    ) -> AsyncGenerator[Page, None]:
        self.asked.append((resource.plural, namespace, fields))
        number = len(self.asked)
        await asyncio.sleep(0)
        self.now += self.seconds
        if self.error is not None:
            raise self.error
        events: list[dict[str, Any]] = [
            {
                "metadata": {"managedFields": ["much"]},
                "involvedObject": {"kind": "Pod", "name": "w", "uid": f"pod-{number}"},
                "reason": "FailedMount",
                "lastTimestamp": "2026-01-01T00:00:00Z",
            },
            {"involvedObject": {"uid": "pod-0"}, "reason": "Evil", "message": "much" * 1000},
        ]
        yield Page(events, 1, begins=True)


def answer(number: int) -> list[dict[str, Any]]:
    """What is kept of it: what can hinder a pod, and of that what is read."""
    about = {"uid": f"pod-{number}"}
    time = "2026-01-01T00:00:00Z"
    return [{"involvedObject": about, "reason": "FailedMount", "lastTimestamp": time}]


def test_looks_at_the_same_time_share_one_list() -> None:
    kube = Slow(0.0)
    found = Hindrances(kube, kube.clock)  # type: ignore[arg-type]

    async def together() -> list[Any]:
        return await asyncio.gather(*(found.of(name) for name in ("a", "a", "b", "a")))

    answers = asyncio.run(together())

    fields = "type=Warning,reason!=FailedScheduling,reason!=BackOff,reason!=Unhealthy"
    assert kube.asked == [("events", "a", fields), ("events", "b", fields)]
    assert answers[0] == answers[1] == answers[3] == answer(1)
    assert answers[2] == answer(2)


@pytest.mark.parametrize(
    ("seconds", "later", "asked"),
    [(0.0, 0.0, 2), (0.2, 1.9, 1), (0.2, 2.1, 2), (3.0, 4.9, 1), (3.0, 5.1, 2)],
)
def test_the_longer_a_list_took_the_longer_it_is_used(
    seconds: float, later: float, asked: int
) -> None:
    kube = Slow(seconds)
    found = Hindrances(kube, kube.clock)  # type: ignore[arg-type]

    async def twice() -> None:
        await found.of("a")
        kube.now += later
        await found.of("a")

    asyncio.run(twice())

    assert len(kube.asked) == asked


def test_a_refusal_is_not_kept() -> None:
    kube = Slow(0.0)
    kube.error = Forbidden(403, "no right")
    found = Hindrances(kube, kube.clock)  # type: ignore[arg-type]

    async def twice() -> list[Any]:
        with pytest.raises(Forbidden):
            await found.of("a")
        kube.error = None
        return await found.of("a")

    assert asyncio.run(twice()) == answer(2)
