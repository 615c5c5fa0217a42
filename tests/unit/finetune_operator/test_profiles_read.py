"""Profiles are read once for looks at the same time, and none of them decides without an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from finetune_operator.acceptance import Profiles
from finetune_operator.kube import Resource, Unavailable
from harness.looks import PROFILES, Looks


class Slow:
    """Answers after others had their turn; what happens before the answer is told."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.meanwhile = meanwhile
        self.asked = 0
        self.error: Exception | None = None

    async def list(self, resource: Resource) -> list[dict[str, Any]]:
        assert resource.plural == "finetuneprofiles"
        self.asked += 1
        number = self.asked
        await asyncio.sleep(0)
        self.meanwhile()
        if self.error is not None:
            raise self.error
        return [{"metadata": {"name": f"answer-{number}"}}]


def test_looks_at_the_same_time_all_wait_for_the_answer() -> None:
    kube = Slow()
    profiles = Profiles(kube)  # type: ignore[arg-type]

    async def three() -> list[Any]:
        return await asyncio.gather(*(profiles.all() for _ in range(3)))

    assert asyncio.run(three()) == [[{"metadata": {"name": "answer-1"}}]] * 3
    assert kube.asked == 1


def test_a_change_while_they_are_read_makes_the_answer_old() -> None:
    kube = Slow()
    profiles = Profiles(kube)  # type: ignore[arg-type]
    kube.meanwhile = profiles.changed
    asyncio.run(profiles.all())
    kube.meanwhile = lambda: None
    asyncio.run(profiles.all())
    asyncio.run(profiles.all())

    assert kube.asked == 2


def test_a_look_after_a_change_does_not_take_an_answer_from_before_it() -> None:
    """It was woken by the change, and nothing wakes it again."""
    kube = Slow()
    profiles = Profiles(kube)  # type: ignore[arg-type]

    async def both() -> Any:
        first = asyncio.create_task(profiles.all())
        while not kube.asked:
            await asyncio.sleep(0)
        profiles.changed()  # the answer is on its way
        return await asyncio.gather(first, profiles.all())

    before, after = asyncio.run(both())
    assert before == [{"metadata": {"name": "answer-1"}}]
    assert after == [{"metadata": {"name": "answer-2"}}]


def test_without_an_answer_nobody_is_told_that_there_are_none() -> None:
    kube = Slow()
    kube.error = Unavailable(0, "no answer")
    profiles = Profiles(kube)  # type: ignore[arg-type]

    async def both() -> list[Any]:
        return await asyncio.gather(profiles.all(), profiles.all(), return_exceptions=True)

    assert [type(one) for one in asyncio.run(both())] == [Unavailable, Unavailable]
    kube.error = None
    assert asyncio.run(profiles.all()) == [{"metadata": {"name": "answer-2"}}]


@pytest.mark.parametrize(("comes", "wait"), [(True, 0.0), (False, None)])
def test_a_job_that_is_refused_while_its_profile_comes_is_looked_at_again(
    comes: bool, wait: float | None
) -> None:
    looks = Looks()
    body = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneProfile"}
    looks.api.create(PROFILES, {**body, "metadata": {"name": "other"}, "spec": {}})
    looks.create(profileRef={"name": "a100"})
    real = looks.kube.replace_status

    async def write(*arguments: Any) -> Any:
        if comes:
            looks.profiles.changed()
        return await real(*arguments)

    looks.kube.replace_status = write  # type: ignore[method-assign]

    assert looks.look() == wait
    assert looks.conditions()["Accepted"][0] == "False"
