"""The kubelet dials the pod's own address: in a cluster of IPv6 that is the only one."""

import asyncio
import socket

import aiohttp

from finetune_operator import probes
from finetune_operator.settings import Settings


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def families() -> list[str]:
    found = ["127.0.0.1"]
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return found
    return [*found, "[::1]"]


def test_probes_are_answered_in_both_families():
    async def run():
        health, port = probes.Health(relist_every=300.0), free_port()
        server = await probes.serve(health, Settings.model_fields["probe_address"].default, port)
        said = []
        try:
            async with aiohttp.ClientSession() as session:
                for address in families():
                    async with session.get(f"http://{address}:{port}/readyz") as answer:
                        said.append(answer.status)
        finally:
            await server.cleanup()
        return said

    assert asyncio.run(run()) == [500] * len(families())
