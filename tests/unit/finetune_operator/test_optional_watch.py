"""A watch that ends by itself ends nothing else, and begins again while its kind is served."""

import asyncio
import threading

import kopf
import pytest

from finetune_operator import optional_watch
from finetune_operator.kube import PYTORCH_JOBS, NotFound, Unavailable
from finetune_operator.optional_watch import OptionalWatch
from harness.looks import Looks
from harness.memory_api import MemoryApi
from harness.played_runs import Run


class Discovery:
    """Answers one question after another; the last answer stays."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0

    async def serves(self, resource, fresh):
        assert (resource, fresh) == (PYTORCH_JOBS, 0.0)
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def watch_of(discovery, *, changed=lambda: None, every=0.02):
    return OptionalWatch(
        kube=discovery,
        resource=PYTORCH_JOBS,
        registry=kopf.OperatorRegistry,
        settings=kopf.OperatorSettings,
        namespaces=("team",),
        changed=changed,
        every=every,
    )


def play(monkeypatch, discovery, library, until=lambda changes: True):
    """Run the watch for a while; returns how often the kind came or went."""
    changes = []

    async def run():
        monkeypatch.setattr(optional_watch.kopf, "operator", library)
        watch = watch_of(discovery, changed=lambda: changes.append(discovery.asked))
        task = asyncio.create_task(watch.run())
        bystander = asyncio.create_task(asyncio.sleep(0.3, "not cancelled"))
        assert await bystander == "not cancelled"
        async with asyncio.timeout(30):
            while not until(changes):
                await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    return len(changes)


def test_it_is_watched_in_its_own_thread_while_it_is_served(monkeypatch):
    began, ended = [], []

    async def library(*, stop_flag, namespaces, clusterwide, settings, **_):
        began.append((threading.current_thread() is threading.main_thread(), namespaces))
        assert not clusterwide
        assert settings.process.ultimate_exiting_timeout is None
        await stop_flag.wait()
        ended.append(1)

    discovery = Discovery(False, False, True, True, True, False, False, False, True)
    assert (
        play(monkeypatch, discovery, library, lambda changes: len(changes) == 3 and began[1:]) == 3
    )
    assert began == [(False, ("team",)), (False, ("team",))]
    assert len(ended) == 2


def test_a_watch_that_breaks_begins_again_and_breaks_nothing(monkeypatch):
    began = []

    async def library(*, stop_flag, **_):
        del stop_flag
        began.append(1)
        raise OSError("404: the server could not find the requested resource")

    assert play(monkeypatch, Discovery(True), library, lambda _: len(began) >= 2) == 0
    assert 2 <= len(began) <= 20, "again, and not without a pause"


@pytest.mark.parametrize("how", [asyncio.CancelledError, SystemExit])
def test_a_watch_that_ends_by_no_ordinary_error_begins_again_too(monkeypatch, how):
    began = []

    async def library(*, stop_flag, **_):
        del stop_flag
        began.append(1)
        raise how

    assert play(monkeypatch, Discovery(True), library, lambda _: len(began) >= 2) == 0
    assert 2 <= len(began) <= 20


def test_it_can_be_ended_while_its_watch_ends(monkeypatch):
    finish = threading.Event()

    async def library(*, stop_flag, **_):
        del stop_flag
        finish.wait()

    async def run():
        monkeypatch.setattr(optional_watch.kopf, "operator", library)
        task = asyncio.create_task(watch_of(Discovery(True), every=60).run())
        await asyncio.sleep(0.05)
        (thread,) = (one for one in threading.enumerate() if one.name == "watch of pytorchjobs")
        finish.set()
        thread.join()
        # Now its end is told to this loop; right after it, the task is told to end.
        asyncio.get_running_loop().call_soon(task.cancel)
        done, _ = await asyncio.wait({task}, timeout=5)
        return [one.cancelled() for one in done]

    assert asyncio.run(run()) == [True]


def test_settings_that_cannot_be_made_end_no_watch_for_ever(monkeypatch):
    asked = []

    def broken():
        asked.append(1)
        raise ValueError("no settings")

    monkeypatch.setattr(optional_watch.kopf, "OperatorSettings", broken)
    assert play(monkeypatch, Discovery(True), None, lambda _: len(asked) >= 2) == 0
    assert 2 <= len(asked) <= 20


def test_without_an_answer_nothing_has_changed(monkeypatch):
    began, ended = [], []

    async def library(*, stop_flag, **_):
        began.append(1)
        await stop_flag.wait()
        ended.append(1)

    away = Unavailable(0, "no answer")
    assert play(monkeypatch, Discovery(away, True, away), library, lambda _: began) == 1
    assert (began, ended) == ([1], [1])
    assert play(monkeypatch, Discovery(away), library) == 0
    assert began == [1]


def test_the_first_list_of_a_kind_that_is_gone_is_the_last():
    looks = Looks(
        api=MemoryApi(pytorch=True), script=lambda stage, *_: Run(forever=stage == "train")
    )
    looks.player.pytorch = True
    looks.create()
    looks.train()
    looks.api.pytorch = False
    looks.player.pytorch = False
    with pytest.raises(NotFound):
        looks.look()
    looks.settle()
    assert looks.status["phase"] == "Running", "its pod still runs"
    (pod,) = [key for key in looks.api.objects if key[0] == "pods" and "bot-1-" in key[2]]
    looks.api.deleted(looks.api.objects.pop(pod))
    looks.settle()
    assert looks.conditions()["Recovering"][:2] == ("True", "BackendMissing")
    assert looks.status["attempt"] == 2
