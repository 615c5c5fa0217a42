"""Long lists are read a few objects at a time, and no more than those are held."""

import asyncio
import weakref

import pytest

from finetune_operator.hindrances import Hindrances
from finetune_operator.kube import EVENTS, Kube, KubeError
from finetune_operator.main import Operator
from finetune_operator.settings import Settings


class Held(dict):
    """A part of an object that a server has sent; it can be told when nobody holds it any more."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


class Paged(Kube):
    """Serves so many objects in pages as large as it is asked for, and counts those still held."""

    def __init__(self, count, expires=()):
        super().__init__()
        self.count = count
        self.expires = list(expires)
        self.alive = weakref.WeakSet()
        self.held = []
        self.asked = []

    async def _ask(self, method, path, body=None, query=None):
        self.held.append(len(self.alive))
        begin, limit = int(query.get("continue") or 0), int(query["limit"])
        self.asked.append((begin, limit))
        if begin and self.expires and self.expires.pop(0):
            raise KubeError(410, "The provided continue parameter is too old", "Expired")
        numbers = range(begin, min(self.count, begin + limit))
        more = begin + limit < self.count
        metadata = {"resourceVersion": "900", "continue": str(begin + limit) if more else ""}
        return {"items": [self.one(number) for number in numbers], "metadata": metadata}

    def one(self, number):
        series = Held(count=number)
        self.alive.add(series)
        name, uid = f"o{number:04}", f"pod-{number}" + "x" * 9000
        return {
            "metadata": {"name": name, "namespace": "team", "uid": "u", "resourceVersion": "7"},
            "reason": "FailedMount",
            "message": "x" * 9000,
            "involvedObject": {"kind": "Pod", "uid": uid},
            "series": series,
        }


def list_all_jobs(kube):
    async def run():
        operator = Operator(Settings(trainer_image="x"))
        operator.jobs.kube = kube
        await operator.jobs.read()
        return len(operator.queue)

    return asyncio.run(run())


def test_the_list_of_all_jobs_holds_one_page():
    kube = Paged(1000)

    assert list_all_jobs(kube) == 1000
    assert kube.asked == [(begin, 50) for begin in range(0, 1000, 50)]
    assert max(kube.held) <= 1, "the next page is asked for when the last is let go of"


def test_of_a_namespaces_events_one_page_is_held_and_what_is_kept_is_bounded():
    kube = Paged(1000)
    found = asyncio.run(Hindrances(kube).of("team"))

    assert len(found) == 1000
    assert max(kube.held) <= 1
    assert len(found[0]["message"]) == len(found[0]["involvedObject"]["uid"]) == 4096

    many = Paged(20_000)
    assert len(asyncio.run(Hindrances(many).of("team"))) == 2000
    assert many.asked[-1] == (4950, 50), "5,000 are read, not 20,000"


def test_a_list_whose_pages_expire_is_begun_again_and_holds_nothing_twice():
    kube = Paged(120, expires=[False, True])
    found = asyncio.run(kube.listed(EVENTS, "team"))

    assert [one["metadata"]["name"] for one in found.items] == [f"o{n:04}" for n in range(120)]
    assert kube.asked == [(0, 50), (50, 50), (100, 50), (0, 50), (50, 50), (100, 50)]
    assert found.version == 900


def test_one_whose_pages_expire_again_and_again_is_given_up():
    kube = Paged(120, expires=[True] * 9)
    with pytest.raises(KubeError, match="too old"):
        asyncio.run(kube.listed(EVENTS, "team"))
    assert kube.asked == [(0, 50), (50, 50)] * 3
