"""The library that watches, against a server that refuses its token for a while."""

import asyncio
import json

import kopf
from aiohttp import web

from finetune_operator import logins
from finetune_operator.known_jobs import KnownJobs
from finetune_operator.last_seen import LastSeen
from finetune_operator.queue import Key
from finetune_operator.settings import kopf_settings
from finetune_operator.watch import make_registry

KINDS = {
    "": ("v1", {"pods": "Pod", "persistentvolumeclaims": "Claim", "namespaces": "Namespace"}),
    "batch": ("v1", {"jobs": "Job"}),
    "finetune.dev": ("v1alpha1", {"finetunejobs": "FineTuneJob", "finetuneprofiles": "X"}),
}


class Server:
    """Serves the kinds without any object, and streams that tell of one job when told to."""

    def __init__(self):
        self.tell = asyncio.Event()
        self.refusing = False
        self.refused = 0
        self.lists = []

    async def answer(self, request):
        parts = request.path.strip("/").split("/")
        if self.refusing:
            self.refused += 1
            return web.json_response({"kind": "Status", "code": 401}, status=401)
        if request.query.get("watch"):
            return await self._stream(request, parts[-1])
        if parts == ["api"]:
            return web.json_response({"versions": ["v1"]})
        if parts == ["apis"]:
            groups = [self._group(group) for group in KINDS if group]
            return web.json_response({"groups": groups})
        group = "" if parts[0] == "api" else parts[1]
        if len(parts) == (2 if parts[0] == "api" else 3):
            return web.json_response({"resources": self._kinds(group)})
        self.lists.append((parts[-1], request.query.get("limit")))
        return web.json_response({"metadata": {"resourceVersion": "5"}, "items": []})

    async def _stream(self, request, plural):
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        wait = asyncio.create_task(self.tell.wait())
        while not wait.done() and not self.refusing:
            await asyncio.wait({wait}, timeout=0.02)
        if wait.done() and plural == "finetunejobs" and not self.refusing:
            metadata = {"namespace": "team", "name": "bot", "uid": "1", "resourceVersion": "6"}
            event = {"type": "ADDED", "object": {"metadata": metadata, "spec": {}}}
            await response.write(json.dumps(event).encode() + b"\n")
            await asyncio.sleep(0.5)
        wait.cancel()
        return response

    def _group(self, group):
        version = {"groupVersion": f"{group}/{KINDS[group][0]}", "version": KINDS[group][0]}
        return {"name": group, "versions": [version], "preferredVersion": version}

    def _kinds(self, group):
        return [
            {
                "name": plural,
                "singularName": kind.lower(),
                "kind": kind,
                "namespaced": plural != "finetuneprofiles",
                "verbs": ["list", "watch"],
            }
            for plural, kind in KINDS[group][1].items()
        ]


def test_a_token_that_is_refused_for_a_while_ends_no_watch(monkeypatch):
    monkeypatch.setattr(logins, "LONGEST", 0.05)
    looked = []

    async def run():
        server = Server()
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", server.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        info = kopf.ConnectionInfo(server=address, token="the same for ever")
        monkeypatch.setattr("finetune_operator.kube.login", lambda: info)
        settings = kopf_settings(1)
        settings.watching.reconnect_backoff = 0.05
        ready, stop = asyncio.Event(), asyncio.Event()
        registry = make_registry(
            enqueue=lambda key, delay: looked.append((key, delay)),
            profile_changed=lambda: None,
            seen=LastSeen(),
            known=KnownJobs(),
        )
        watch = asyncio.create_task(
            kopf.operator(
                registry=registry,
                settings=settings,
                standalone=True,
                clusterwide=True,
                ready_flag=ready,
                stop_flag=stop,
            )
        )
        await ready.wait()
        while len(server.lists) < 5:
            await asyncio.sleep(0.02)
        server.refusing = True
        while server.refused < 10:
            await asyncio.sleep(0.02)
            assert not watch.done()
        server.refusing = False
        server.tell.set()
        while not looked:
            await asyncio.sleep(0.02)
            assert not watch.done()
        stop.set()
        await asyncio.wait({watch}, timeout=5)
        await runner.cleanup()
        return server

    server = asyncio.run(asyncio.wait_for(run(), 20))
    assert looked[0] == (Key("team", "bot"), 0.0)
    assert {limit for _, limit in server.lists} == {"50"}
