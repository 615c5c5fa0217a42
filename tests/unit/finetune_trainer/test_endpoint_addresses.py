"""Progress is told at every address of a pod: in a cluster of IPv6 it has no other."""

import errno
import json
import socket
import urllib.request

import pytest

from finetune_api.reports import Progress
from finetune_trainer.callbacks import endpoint as served
from finetune_trainer.callbacks.endpoint import Endpoint

PROGRESS = Progress(job_uid="u", attempt=1, claim=1, step=7, total_steps=60)


def told(address: str, port: int) -> int:
    with urllib.request.urlopen(f"http://{address}:{port}/progress", timeout=10) as answer:
        return int(json.load(answer)["step"])


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_without_a_host_both_families_are_answered() -> None:
    endpoint = Endpoint("", 0, lambda: PROGRESS)
    try:
        assert told("127.0.0.1", endpoint.port) == 7
        if has_ipv6():
            assert told("[::1]", endpoint.port) == 7
    finally:
        endpoint.close()


@pytest.mark.parametrize("why", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_without_ipv6_it_is_ipv4(monkeypatch: pytest.MonkeyPatch, why: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(why, "no IPv6")

    monkeypatch.setattr(served._BothFamilies, "server_bind", refuse)
    endpoint = Endpoint("", 0, lambda: PROGRESS)
    try:
        assert told("127.0.0.1", endpoint.port) == 7
    finally:
        endpoint.close()


def test_a_port_that_is_taken_is_said() -> None:
    endpoint = Endpoint("", 0, lambda: PROGRESS)
    try:
        with pytest.raises(OSError, match="in use"):
            Endpoint("", endpoint.port, lambda: PROGRESS)
    finally:
        endpoint.close()
