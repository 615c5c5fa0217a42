"""How many requests go out in a second."""

from __future__ import annotations

import asyncio

import pytest

from finetune_operator.pace import Pace


class Clock:
    """A clock that moves by itself when somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waited: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waited.append(round(seconds, 6))
        self.now += seconds


@pytest.mark.parametrize(
    ("rate", "burst", "turns", "waits"),
    [
        (10.0, 1, 3, [0.1, 0.1]),
        (10.0, 3, 5, [0.1, 0.1]),
        (200.0, 4, 4, []),
    ],
)
def test_a_burst_goes_at_once_and_the_rest_at_the_rate(
    rate: float, burst: int, turns: int, waits: list[float]
) -> None:
    clock = Clock()
    pace = Pace(rate, burst, clock, clock.sleep)

    async def all_turns() -> None:
        for _ in range(turns):
            await pace.turn()

    asyncio.run(all_turns())

    assert clock.waited == waits


def test_a_rest_earns_a_burst_again_and_never_more() -> None:
    clock = Clock()
    pace = Pace(10.0, 2, clock, clock.sleep)

    async def turns(number: int) -> None:
        for _ in range(number):
            await pace.turn()

    asyncio.run(turns(3))
    clock.now += 60.0
    asyncio.run(turns(3))

    assert clock.waited == [0.1, 0.1]


def test_who_comes_at_once_waits_in_order() -> None:
    clock = Clock()
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(round(seconds, 6))

    pace = Pace(10.0, 1, clock, sleep)

    async def together() -> None:
        await asyncio.gather(*(pace.turn() for _ in range(4)))

    asyncio.run(together())

    assert waited == [0.1, 0.2, 0.3]
