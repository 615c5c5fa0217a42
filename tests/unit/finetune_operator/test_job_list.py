"""The list of all jobs finds what no watch has told, and what hinders one namespace hinders no other."""

import asyncio

import pytest

from finetune_operator.answers import error_of
from finetune_operator.kube import KubeError, Unavailable
from finetune_operator.main import Operator
from finetune_operator.progress import Source
from finetune_operator.queue import Key
from finetune_operator.settings import Settings

BOT = Key("team", "bot")


class Cluster:
    """Namespaces with jobs; one may refuse to be listed."""

    def __init__(self, **jobs):
        self.jobs = jobs
        self.codes = {}
        self.asked = []

    async def ask(self, method, path, body=None, query=None):
        namespace = path.split("/")[5] if "/namespaces/" in path else None
        self.asked.append(namespace)
        if namespace in self.codes:
            code = self.codes[namespace]
            raise error_of(code, {"message": f"not in {namespace}"}, "", None)
        if path.rsplit("/", 1)[1] in ("bot", "other"):
            raise error_of(404, {"message": "gone"}, "", None)
        items = [
            {"metadata": {"namespace": where, "name": name, "resourceVersion": "7", "uid": name}}
            for where, names in self.jobs.items()
            for name in names
            if namespace in (None, where)
        ]
        return {"metadata": {"resourceVersion": "9"}, "items": items}


def operator_of(cluster, *namespaces):
    operator = Operator(Settings(trainer_image="x", namespaces=namespaces))
    operator.kube._ask = cluster.ask
    return operator


def waiting(operator):
    return {str(key) for key, _ in operator.queue._schedule._due.items()}


def test_a_namespace_that_is_gone_takes_no_jobs_from_the_others(caplog):
    async def run():
        cluster = Cluster(good=("a", "b"), gone=("c",))
        cluster.codes = {"gone": 403}
        operator = operator_of(cluster, "gone", "good")
        operator.worker._uids[Key("gone", "c")] = "u-c"

        await operator.jobs.read()
        assert waiting(operator) == {"good/a", "good/b"}, "nothing is concluded of gone/c"
        assert operator.jobs.last is not None
        await operator.jobs.read()
        assert cluster.asked == ["gone", "good"] * 2, "it is asked again with the next list"
        del cluster.codes["gone"]
        await operator.jobs.read()
        assert waiting(operator) == {"good/a", "good/b", "gone/c"}

    caplog.set_level("INFO")
    asyncio.run(run())
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "namespace gone is left alone until its jobs can be listed: 403 : not in gone",
        "the jobs of namespace gone can be listed again",
    ]


@pytest.mark.parametrize("namespaces", [(), ("a",), ("a", "b")])
def test_where_none_may_be_listed_the_jobs_were_not_listed(namespaces):
    async def run():
        cluster = Cluster()
        cluster.codes = dict.fromkeys((None, "a", "b"), 403)
        operator = operator_of(cluster, *namespaces)
        with pytest.raises(KubeError):
            await operator.jobs.read()
        with pytest.raises(KubeError):
            await operator.jobs.read()
        assert operator.jobs.last is None

    asyncio.run(run())


def test_only_namespaces_without_an_answer_are_listed_again_soon():
    async def run():
        cluster = Cluster(a=("x",), b=("y",), c=("z",))
        cluster.codes = {"b": 500}
        operator = operator_of(cluster, "a", "b", "c")
        with pytest.raises(KubeError):
            await operator.jobs.read()
        assert waiting(operator) == {"a/x", "c/z"}
        assert operator.jobs.last is None
        cluster.codes = {}
        await operator.jobs.read()
        assert operator.jobs.last is not None
        await operator.jobs.read()
        assert cluster.asked == ["a", "b", "c", "b", "a", "b", "c"]

    asyncio.run(run())


def test_where_nobody_answers_the_others_are_not_asked():
    async def run():
        cluster = Cluster()
        operator = operator_of(cluster, "a", "b", "c")

        async def nobody(*_, **__):
            cluster.asked.append("?")
            raise Unavailable(0, "no answer")

        operator.kube._ask = nobody
        with pytest.raises(KubeError):
            await operator.jobs.read()
        assert cluster.asked == ["?"]
        operator.kube._ask = cluster.ask
        await operator.jobs.read()
        assert cluster.asked == ["?", "a", "b", "c"]

    asyncio.run(run())


def test_a_job_whose_deletion_nobody_told_is_let_go_of():
    async def run():
        cluster = Cluster(team=())
        operator = operator_of(cluster)
        body = {
            "metadata": {"namespace": "team", "name": "bot", "uid": "u1", "resourceVersion": "5"}
        }
        operator.worker._meet(BOT, "u1")
        operator.worker.known.learn({**body, "spec": {}})
        operator.puller._sources["u1"] = Source(BOT, "u1", 1, "10.1.2.3")
        operator.worker._meet(Key("team", "other"), "u2")
        operator.worker.unaccepted.add(Key("team", "other"))

        await operator.jobs.read()
        assert waiting(operator) == {"team/bot", "team/other"}
        for key in (BOT, Key("team", "other")):
            assert await operator.worker.look(key) is None

        assert not operator.worker.met
        assert not operator.worker.unaccepted
        assert len(operator.worker.known) == 0
        assert "u1" not in operator.puller._sources
        await operator.puller.close()

    asyncio.run(run())


def test_a_list_that_stumbles_over_one_object_is_made_again():
    async def run():
        operator = operator_of(Cluster(team=("bot",)))
        listed = operator.worker.known.listed
        operator.worker.known.listed = lambda body: body["nothing"]
        assert await operator._tried("not listed", operator.jobs.read()) is False
        operator.worker.known.listed = listed
        assert await operator._tried("not listed", operator.jobs.read()) is True
        assert waiting(operator) == {"team/bot"}

    asyncio.run(run())
