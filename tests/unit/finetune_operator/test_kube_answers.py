"""What the client of the API server makes of answers: deep ones, cut ones, those of somebody else."""

import asyncio
import json
import sys

import kopf
import pytest
from aiohttp import web

from finetune_operator import main
from finetune_operator.kube import FINETUNE_JOBS, PODS, PYTORCH_JOBS, Kube, NotFound, Unavailable

LIST = '{"kind": "List", "metadata": {"resourceVersion": "7"}, "items": [%s]}'


def asked(monkeypatch, answer, ask):
    """Return what comes of a question to a server that gives this answer to everything."""

    async def run():
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server = f"http://127.0.0.1:{runner.addresses[0][1]}"
        info = kopf.ConnectionInfo(server=server)
        monkeypatch.setattr("finetune_operator.kube.login", lambda: info)
        kube = Kube()
        try:
            return await ask(kube)
        finally:
            await kube.close()
            await runner.cleanup()

    return asyncio.run(asyncio.wait_for(run(), 20))


def text(said, status=200, kind="application/json"):
    async def answer(request):
        return web.Response(text=said, status=status, content_type=kind)

    return answer


def list_pods(kube):
    return kube.listed(PODS, "team", "a=b")


QUESTIONS = {
    "a list": list_pods,
    "an object": lambda kube: kube.find(FINETUNE_JOBS, "team", "bot"),
    "a kind": lambda kube: kube.serves(PYTORCH_JOBS),
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    "answer",
    [
        text('{"kind": "List", "items": [{"metadata": {"na'),
        text(""),
        text("<html>log in</html>", kind="text/html"),
        text('"ok"'),
        text("default backend - 404", 404, "text/plain"),
        text("<a href=/login>Found</a>", 302, "text/html"),
    ],
    ids=["cut", "empty", "a page", "no object", "another's 404", "another place"],
)
def test_what_the_api_server_did_not_say_decides_nothing(monkeypatch, question, answer):
    with pytest.raises(Unavailable, match="no answer of the API server"):
        asked(monkeypatch, answer, QUESTIONS[question])


@pytest.mark.parametrize("question", ["a list", "a kind"])
def test_another_object_is_no_empty_list(monkeypatch, question):
    with pytest.raises(Unavailable, match="no answer of the API server"):
        asked(monkeypatch, text('{"error": "log in"}'), QUESTIONS[question])


def test_nobody_is_followed_elsewhere(monkeypatch):
    places = []

    async def answer(request):
        places.append(request.path)
        if request.path == "/login":
            return web.json_response({"kind": "List", "metadata": {}, "items": []})
        raise web.HTTPFound("/login")

    with pytest.raises(Unavailable):
        asked(monkeypatch, answer, list_pods)
    with pytest.raises(Unavailable):
        asked(monkeypatch, answer, lambda k: k.log("team", "bot-1", "trainer", lines=1, limit=9))
    assert places == ["/api/v1/namespaces/team/pods", "/api/v1/namespaces/team/pods/bot-1/log"]


def test_of_what_is_listed_no_long_annotation_is_kept(monkeypatch):
    metadata = {"name": "a", "annotations": {"index": "1", "notes": "x" * 1025}}
    (found,) = asked(monkeypatch, text(LIST % json.dumps({"metadata": metadata})), list_pods).items
    assert found["metadata"] == {"name": "a", "annotations": {"index": "1"}}


def test_what_it_does_say_counts(monkeypatch):
    found = asked(monkeypatch, text(LIST % '{"metadata": {"name": "a"}}'), list_pods)
    assert found.version == 7
    assert found.items == [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}]
    assert asked(monkeypatch, text(LIST % ""), list_pods).items == []
    nothing = json.dumps({"kind": "Status", "code": 404, "reason": "NotFound"})
    for said, kind in ((nothing, "application/json"), ("404 page not found\n", "text/plain")):
        answer = text(said, 404, kind)
        assert asked(monkeypatch, answer, QUESTIONS["an object"]) is None
        assert asked(monkeypatch, answer, QUESTIONS["a kind"]) is False
        with pytest.raises(NotFound):
            asked(monkeypatch, answer, list_pods)


@pytest.fixture
def as_the_process(monkeypatch):
    """Let Python nest as deep as the process of the operator does."""
    before = sys.getrecursionlimit()
    monkeypatch.setattr(main, "read_settings", lambda *_: pytest.fail("only the first line"))
    with pytest.raises(pytest.fail.Exception):
        main.main()
    yield
    sys.setrecursionlimit(before)


def test_the_deepest_object_that_the_api_server_takes_is_read(monkeypatch, as_the_process):
    deep = '{"metadata": {"name": "bot"}, "spec": ' + '{"a":' * 9_990 + "1" + "}" * 9_990 + "}"

    (found,) = asked(monkeypatch, text(LIST % deep), list_pods).items

    spec, levels = found["spec"], 0
    while spec != 1:
        spec, levels = spec["a"], levels + 1
    assert levels == 9_990


def test_one_that_is_too_deep_for_this_process_is_no_empty_list(monkeypatch):
    deep = '{"spec": ' + '{"a":' * 9_990 + "1" + "}" * 9_990 + "}"

    with pytest.raises(Unavailable):
        asked(monkeypatch, text(LIST % deep), list_pods)
