"""A token that is refused for a moment is tried again; the library alone would end without it."""

import asyncio

import kopf
import pytest
from kopf._cogs.structs.credentials import Vault

from finetune_operator.logins import Logins


@pytest.fixture
def token(monkeypatch):
    """Let the credentials on the disk be the same for ever."""
    info = kopf.ConnectionInfo(server="http://api", token="abc", default_namespace="team")
    monkeypatch.setattr("finetune_operator.kube.login", lambda: info)


class Time:
    """A clock that moves by sleeping alone."""

    def __init__(self):
        self.now = 100.0
        self.slept = []

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def test_who_asks_again_and_again_waits_longer_each_time(token):
    time = Time()
    logins = Logins(lambda: time.now, time.sleep)

    async def run(times):
        return [await logins() for _ in range(times)]

    asyncio.run(run(8))
    assert time.slept == [1, 2, 4, 8, 16, 30, 30]
    time.now += 61
    asyncio.run(run(2))
    assert time.slept == [1, 2, 4, 8, 16, 30, 30, 1]


def test_the_library_takes_the_same_token_again(token):
    time = Time()
    logins = Logins(lambda: time.now, time.sleep)

    async def run():
        vault = Vault({"log_in": await logins()})
        for _ in range(5):
            async for key, info in vault:
                refused = asyncio.create_task(vault.invalidate(key, info, exc=Exception("401")))
                await vault.wait_for_emptiness()
                await vault.populate({"log_in": await logins()})
                await refused
                break
        return [info.token async for _, info in vault]

    assert asyncio.run(asyncio.wait_for(run(), 10)) == ["abc"]
