"""What a hub's failures become: final, tried again, or a full volume."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_trainer import errors, hub
from finetune_trainer.errors import StageError


class Answer(NamedTuple):
    status_code: int


class AnsweredError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__("the body")
        self.response = Answer(status)


def ended(error: Exception) -> errors.Ending:
    try:
        with hub._explained("hf://acme/m", None, has_token=False):
            raise error
    except Exception as told:
        return errors.ending_of(told)


@pytest.mark.parametrize(
    ("error", "exit_code", "reason"),
    [
        (TimeoutError(), 20, "TimeoutError"),
        (ConnectionResetError(), 20, "ConnectionResetError"),
        (OSError("model.safetensors did not arrive whole"), 20, "model.safetensors did not arrive"),
        (AnsweredError(503), 20, "the hub answered 503"),
        (AnsweredError(429), 20, "the hub answered 429"),
        (AnsweredError(400), 16, "the hub answered 400"),
        (httpx2.ReadTimeout("timed out"), 20, "timed out"),
        (httpx2.RemoteProtocolError("peer closed"), 20, "peer closed"),
        (RuntimeError("Data processing error: CAS service error"), 20, "Data processing error"),
        (httpx2.InvalidURL("Invalid port: 'x'"), 16, "Invalid port"),
        (httpx2.UnsupportedProtocol("no 'http://'"), 16, "no 'http://'"),
        (KeyError("sha"), 16, "'sha'"),
        (ValueError("Repo id must be in the form"), 16, "Repo id must be in the form"),
    ],
)
def test_what_may_be_over_in_a_minute_is_tried_again(
    error: Exception, exit_code: int, reason: str
) -> None:
    ending = ended(error)
    assert ending.exit_code == exit_code
    (problem,) = ending.problems
    assert problem.code == "hub-unreachable"
    assert problem.message.startswith(f"hf://acme/m cannot be fetched: {reason}")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_volume_is_no_fault_of_the_network(number: int) -> None:
    ending = ended(OSError(number, "No space left on device"))
    assert ending.exit_code == ExitCode.STORAGE_FULL
    assert ending.problems[0].code == "storage-full"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_file_that_may_not_be_written_is_named(number: int) -> None:
    ending = ended(OSError(number, "Not allowed", "/workspace/jobs/tiny/model"))
    assert ending.exit_code == ExitCode.UNEXPECTED
    assert "/workspace/jobs/tiny/model" in ending.message
    assert [problem.code for problem in ending.problems] == ["unexpected"]


def test_a_certificate_that_is_not_trusted_is_not_tried_again() -> None:
    error = httpx2.ConnectError("All connection attempts failed")
    error.__cause__ = OSError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")
    ending = ended(error)
    assert ending.exit_code == ExitCode.MODEL_UNAVAILABLE
    (problem,) = ending.problems
    assert problem.code == "hub-not-trusted"
    assert "SSL_CERT_FILE" in problem.fix


def test_room_is_looked_for_before_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(3 << 20))
    (tmp_path / "arrived").write_bytes(b"x" * (1 << 20))
    hub._check_room(tmp_path, 4 << 20, "hf://acme/m")
    with pytest.raises(StageError) as caught:
        hub._check_room(tmp_path, 5 << 20, "hf://acme/m")
    assert caught.value.exit_code is ExitCode.STORAGE_FULL
    problem: Any = caught.value.problems[0]
    assert problem.message == ("fetching hf://acme/m needs 4.0 MiB, 3.0 MiB free in the workspace")
    assert problem.fix == "free 1.0 MiB, or use a larger volume (spec.workspace)"
