"""It is told when a watch can hear nothing, and watching begins when there is something to watch."""

import asyncio

import kopf
import pytest

from finetune_operator import main
from finetune_operator.answers import error_of
from finetune_operator.hearing import deaf, unserved
from finetune_operator.kube import Kube, Unavailable
from finetune_operator.main import Operator
from finetune_operator.settings import Settings

ROOTS = {
    "/apis/finetune.dev/v1alpha1": ["finetunejobs", "finetuneprofiles"],
    "/apis/batch/v1": ["jobs"],
}


class Server(Kube):
    """Answers every list and every question for kinds, but for what it is told to refuse."""

    def __init__(self, *refused, code=403):
        super().__init__()
        self.refused = refused
        self.code = code
        self.asked = []
        self.groups = ["finetune.dev", "batch"]
        self.roots = dict(ROOTS)

    async def _ask(self, method, path, body=None, query=None):
        self.asked.append((path, dict(query or {})))
        if path.endswith(self.refused):
            raise error_of(self.code, {"message": "no", "reason": "Why"}, "", None)
        if path == "/apis":
            return {"groups": [{"name": name} for name in self.groups]}
        if path.startswith("/apis/") and path.count("/") == 3:
            if path not in self.roots:
                raise error_of(404, {"message": "404 page not found"}, "", None)
            return {"resources": [{"name": name} for name in self.roots[path]]}
        return {"metadata": {"resourceVersion": "1"}, "items": []}


@pytest.mark.parametrize(
    ("refused", "namespaces", "said"),
    [
        ((), (), ""),
        (("/pods",), (), "pods cannot be watched: 403 Why: no"),
        (("/b/jobs",), ("a", "b"), "jobs of b cannot be watched: 403 Why: no"),
        (("/finetuneprofiles",), ("a",), "finetuneprofiles cannot be watched: 403 Why: no"),
        (("/finetunejobs",), (), "finetunejobs cannot be watched: 403 Why: no"),
        (("/gone/finetunejobs", "/gone/pods"), ("gone", "b"), ""),
    ],
)
def test_what_may_not_be_listed_is_named(refused, namespaces, said):
    assert asyncio.run(deaf(Server(*refused), namespaces)) == said


def test_no_object_is_read_for_that():
    server = Server()
    asyncio.run(deaf(server, ("a",)))

    assert [path.rsplit("/", 1)[1] for path, _ in server.asked] == [
        "finetunejobs",
        "pods",
        "jobs",
        "persistentvolumeclaims",
        "finetuneprofiles",
    ]
    assert {query["fieldSelector"] for _, query in server.asked} == {"metadata.name=none"}
    assert {query["resourceVersion"] for _, query in server.asked} == {"0"}


def test_without_an_answer_nothing_is_concluded():
    with pytest.raises(Unavailable):
        asyncio.run(deaf(Server("/pods", code=503), ()))


def test_the_process_is_not_ready_while_a_watch_is_deaf():
    async def run():
        operator = Operator(Settings(trainer_image="x"))
        operator.kube._ask = Server("/pods")._ask
        operator.health.last_relist = operator.health.clock()
        assert operator.health.unready() == "the first lists were not seen yet"
        await operator._ask_deaf()
        assert operator.health.unready() == "pods cannot be watched: 403 Why: no"
        assert operator.health.problem() == "", "a restart mends no right"
        operator.kube._ask = Server()._ask
        await operator._ask_deaf()
        assert operator.health.unready() == ""

    asyncio.run(run())


def test_a_kind_is_served_when_its_group_is_listed_too():
    async def run():
        server = Server()
        server.roots.pop("/apis/finetune.dev/v1alpha1")
        assert await unserved(server) == ("finetunejobs", "finetuneprofiles")
        server.roots |= ROOTS
        server.groups = ["batch"]
        assert await unserved(server) == ("finetunejobs", "finetuneprofiles")
        server.groups.append("finetune.dev")
        assert await unserved(server) == ()
        server.asked.clear()
        assert await unserved(server) == ()
        assert "/apis" not in [path for path, _ in server.asked], "asked when a kind is new"

    asyncio.run(run())


def test_watching_begins_when_the_definitions_are_served(monkeypatch):
    begun = []

    async def library(*, ready_flag, **_):
        begun.append(True)
        ready_flag.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(kopf, "operator", library)
    monkeypatch.setattr(main, "UNSERVED", 0.01)

    async def run():
        operator, server = Operator(Settings(trainer_image="x")), Server()
        server.roots.pop("/apis/finetune.dev/v1alpha1")
        operator.kube._ask = server._ask
        started = asyncio.Event()
        watch = asyncio.create_task(operator._watch(started, asyncio.Event(), asyncio.Event()))
        await asyncio.sleep(0.1)
        assert not begun
        assert operator.health.unready() == (
            "the API server does not serve finetunejobs, finetuneprofiles: definitions are missing"
        )
        server.roots |= ROOTS
        await asyncio.wait_for(started.wait(), 5)
        assert begun == [True]
        assert operator.health.unserved == ""
        watch.cancel()
        await asyncio.wait({watch})

    asyncio.run(run())
