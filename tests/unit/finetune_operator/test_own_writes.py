"""A change of a job that the operator made itself is no reason to look at it again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_operator import main
from finetune_operator.kube import PODS, Kube, Listing, Unavailable
from finetune_operator.main import Operator
from finetune_operator.queue import Key
from finetune_operator.settings import Settings
from harness.looks import NAMESPACE, Looks

KEY = Key("team", "bot")


def test_a_look_knows_the_versions_that_it_has_written() -> None:
    looks = Looks()
    looks.create()
    looks.look()
    stored = looks.api.objects[("finetunejobs", NAMESPACE, "bot")]
    own = stored["metadata"]["resourceVersion"]

    assert looks.worker.is_own(looks.key, own)
    looks.change(suspend=True)
    theirs = stored["metadata"]["resourceVersion"]
    assert theirs != own
    assert not looks.worker.is_own(looks.key, theirs)
    assert looks.worker.is_own(looks.key, own)
    looks.restart()
    assert not looks.worker.is_own(looks.key, own)


@pytest.mark.parametrize(("version", "looked_at"), [("7", []), ("8", [KEY])])
def test_a_change_of_a_job_is_looked_at_unless_it_is_our_own(
    version: str, looked_at: list[Key], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch tells of it before the answer to the write has come."""
    monkeypatch.setattr(main, "ECHO", 0.05)
    operator = Operator(Settings())
    asked: list[Key] = []
    monkeypatch.setattr(operator.queue, "add", lambda key, delay=0.0: asked.append(key))

    async def told() -> None:
        operator._echoed(KEY, version)
        operator.worker._written[KEY] = ("6", "7")
        assert asked == []
        await asyncio.sleep(0.1)

    asyncio.run(told())

    assert asked == looked_at


def test_changes_that_may_wait_gather_longer_while_many_are_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    operator = Operator(Settings(workers=12))
    asked: list[tuple[float, float]] = []

    def add(key: Key, delay: float = 0.0, patience: float = 0.0) -> None:
        asked.append((delay, patience))

    for active in (0, 3, 4):
        monkeypatch.setattr(type(operator.queue), "active", active)
        monkeypatch.setattr(operator.queue, "add", add)
        operator._enqueue(KEY, 0.2)
        operator._enqueue(KEY, 0.0)

    assert asked == [(0.2, 30), (0, 0), (0.2, 30), (0, 0), (1.0, 30), (0, 0)]


def test_progress_and_what_a_look_has_asked_for_let_new_jobs_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 200 jobs that began together, looks 5 s after each start took the others' requests."""
    operator = Operator(Settings())
    asked: list[tuple[float, float]] = []

    async def look(key: Key) -> float:
        return 5.0

    def add(key: Key, delay: float = 0.0, patience: float = 0.0) -> None:
        asked.append((delay, patience))

    monkeypatch.setattr(operator.worker, "look", look)
    monkeypatch.setattr(operator.queue, "add", add)
    asyncio.run(operator._look(KEY))
    operator.puller._found(KEY)

    assert asked == [(5.0, 30), (0, 30)]


def test_a_store_that_counts_by_itself_is_asked_for_its_newest_state() -> None:
    """A version of another store may never come there."""
    asked: list[str | None] = []

    class Apart(Kube):
        async def _ask(self, method: str, path: str, body: Any = None, query: Any = None) -> Any:
            asked.append(query.get("resourceVersion"))
            if "resourceVersion" in query:
                raise Unavailable(504, "Too large resource version: 900, current: 12", "Timeout")
            return {"metadata": {"resourceVersion": "12"}, "items": [{"metadata": {"name": "a"}}]}

    async def twice() -> Listing:
        apart = Apart()
        await apart.listed(PODS, "team", since=900)
        return await apart.listed(PODS, "team", since=900)

    found = asyncio.run(twice())

    # The refusal takes seconds, and is remembered.
    assert asked == ["900", None, None]
    assert (found.version, [one["metadata"]["name"] for one in found.items]) == (12, ["a"])
