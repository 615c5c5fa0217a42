from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.problem import Problem, Refused
from finetune_trainer import errors
from finetune_trainer.errors import Signalled, StageError
from harness.stage_config import make_config

PROBLEM = Problem(code="some-code", message="what is wrong", fix="do this")


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which these tests do not import."""


class DistBackendError(RuntimeError):
    """Named as torch.distributed's."""


@pytest.mark.parametrize(
    ("error", "code", "problem"),
    [
        (StageError(ExitCode.GATE_NOT_MET, PROBLEM), 17, "some-code"),
        (Refused(PROBLEM), 10, "some-code"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 12, "out-of-memory"),
        (MemoryError(), 12, "out-of-memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            12,
            "out-of-memory",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`"),
            12,
            "out-of-memory",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), 12, "out-of-memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), 1, "unexpected"),
        (OSError(errno.ENOSPC, "No space left on device"), 14, "storage-full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 14, "storage-full"),
        (
            RuntimeError("Error: I/O error: No space left on device (os error 28)"),
            14,
            "storage-full",
        ),
        (
            DistBackendError(
                "NCCL error in: NCCLUtils.hpp:328, unhandled system error\n"
                "Last error:\n"
                "Error while creating shared memory segment /dev/shm/nccl-GMRMfi (size 33030528), "
                "error: No space left on device (28)"
            ),
            10,
            "shared-memory-full",
        ),
        (
            RuntimeError("unable to write to file </torch_71_0>: No space left on device (28)"),
            10,
            "shared-memory-full",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/dev/shm/sem.x"),
            10,
            "shared-memory-full",
        ),
        (DistBackendError("bind: No space left on device"), 20, "communication-lost"),
        (
            Exception(
                "Current loss scale already at minimum - cannot decrease scale anymore. "
                "Exiting run."
            ),
            13,
            "non-finite-gradients",
        ),
        (DistBackendError("NCCL error: unhandled system error"), 20, "communication-lost"),
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"),
            20,
            "communication-lost",
        ),
        (
            ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
            20,
            "communication-lost",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/volumes/models/tiny/config.json"),
            16,
            "not-permitted",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/workspace/x"), 1, "unexpected"),
        (ValueError("no idea"), 1, "unexpected"),
        (FileNotFoundError(errno.ENOENT, "No such file"), 1, "unexpected"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 1, "unexpected"),
    ],
)
def test_each_exception_has_its_code(error: Exception, code: int, problem: str) -> None:
    ending = errors.ending_of(error)
    assert ending.exit_code == code
    assert [item.code for item in ending.problems] == [problem]
    assert ending.problems[0].fix


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 71) is killed by signal: Killed. ",
        "DataLoader worker (pid(s) 71, 72) exited unexpectedly",
    ],
)
def test_a_worker_that_was_killed_counts_whatever_its_end_broke(text: str) -> None:
    error = RuntimeError(text)
    error.__cause__ = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    ending = errors.ending_of(error)
    assert (ending.exit_code, ending.problems) == (137, ())
    assert ending.message.startswith("a process that reads ahead for a rank was killed")


def test_a_worker_that_was_ended_otherwise_is_unexpected() -> None:
    ending = errors.ending_of(
        RuntimeError("DataLoader worker (pid 71) is killed by signal: Segmentation fault. ")
    )
    assert (ending.exit_code, ending.problems[0].code) == (1, "unexpected")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            IndexError(
                "Caught IndexError in DataLoader worker process 0.\n"
                "Original Traceback (most recent call last):\n"
                '  File "cache.py", line 1, in documents\n'
                "IndexError: index 99 is out of bounds\n"
            ),
            1,
            "IndexError: index 99 is out of bounds",
        ),
        (
            RuntimeError(
                "Caught UnpicklingError in DataLoader worker process 1.\n"
                "Original Traceback (most recent call last):\n"
                '  File "cache.py", line 1, in documents\n'
                "_pickle.UnpicklingError: cut short\nafter 3 bytes\n"
            ),
            1,
            "UnpicklingError: cut short",
        ),
        (
            OutOfMemoryError(
                "Caught OutOfMemoryError in pin memory thread for device 0.\n"
                "Original Traceback (most recent call last):\n"
                '  File "pin_memory.py", line 1, in pin\n'
                "torch.OutOfMemoryError: CUDA out of memory\n"
            ),
            12,
            "out of memory: OutOfMemoryError: CUDA out of memory",
        ),
    ],
)
def test_what_a_loader_s_process_met_is_told_in_its_words(
    error: Exception, code: int, message: str
) -> None:
    ending = errors.ending_of(error)
    assert (ending.exit_code, ending.message) == (code, message)


def test_shared_memory_is_told_in_the_words_that_name_it() -> None:
    error = DistBackendError(
        "unhandled system error\nLast error:\n"
        "Error while creating shared memory segment /dev/shm/nccl-G, error: No space left on device"
    )
    assert errors.ending_of(error).message == (
        "no room in the shared memory of a node: Error while creating shared memory segment "
        "/dev/shm/nccl-G, error: No space left on device"
    )


@pytest.mark.parametrize(
    ("file", "code", "problem"),
    [
        ("workspace/checkpoints/1/x", 14, "storage-full"),
        ("volumes/models/x", 14, "storage-full"),
        ("cache/x.py", 1, "node-disk-full"),
        ("workspace/../cache/x.py", 1, "node-disk-full"),
    ],
)
def test_the_disk_of_a_node_is_no_volume_of_the_job(
    tmp_path: Path, file: str, code: int, problem: str
) -> None:
    config = make_config(tmp_path, "train")
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / file))
    ending = errors.ending_of(error, config)
    assert (ending.exit_code, ending.problems[0].code) == (code, problem)
    if problem == "node-disk-full":
        assert f"no room on the node's own disk, in {tmp_path / 'cache'}: " in ending.message


@pytest.mark.parametrize("error", [Signalled(), KeyboardInterrupt()])
def test_a_signal_is_no_problem(error: BaseException) -> None:
    ending = errors.ending_of(error)
    assert (ending.exit_code, ending.problems) == (143, ())


def test_the_cause_of_an_exception_counts() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as inner:
            raise RuntimeError("while saving") from inner
    except RuntimeError as outer:
        assert errors.ending_of(outer).exit_code == 14


def test_an_unexpected_end_shows_its_last_line_and_no_traceback() -> None:
    ending = errors.ending_of(KeyError("first\nsecond"))
    assert ending.message == "KeyError: 'first\\nsecond'"
    assert errors.ending_of(ValueError("first\nsecond")).message == "ValueError: first"


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ([], 0),
        ([0, 0], 0),
        ([143, 143], 143),
        ([143, 20], 20),
        ([20, 137, 143], 137),
        ([137, 12], 12),
        ([143, 13], 13),
        ([20, 21], 21),
        ([1, 20], 1),
        ([11, 10, 143], 10),
        ([99, 143], 99),
    ],
)
def test_one_code_names_the_cause_of_all(codes: list[int], worst: int) -> None:
    assert errors.worst(codes) == worst


@pytest.mark.parametrize(
    ("returned", "code"),
    [
        (0, 0),
        (12, 12),
        (143, 143),
        (-signal.SIGKILL, 137),
        (-signal.SIGTERM, 143),
        (-signal.SIGSEGV, 1),
        (255, 1),
    ],
)
def test_return_codes_become_codes_of_the_contract(returned: int, code: int) -> None:
    assert errors.exit_code_of(returned) == code


@pytest.mark.parametrize(("device", "code"), [("cuda", 20), ("cpu", 1)])
def test_a_rank_that_nccl_aborted_lost_the_others(device: str, code: int) -> None:
    assert errors.exit_code_of(-signal.SIGABRT, device) == code
    assert errors.exit_code_of(-signal.SIGSEGV, device) == 1
    assert errors.exit_code_of(-signal.SIGKILL, device) == 137


def test_every_code_of_the_contract_has_a_precedence() -> None:
    assert sorted(errors.PRECEDENCE) == sorted(ExitCode)


def test_a_problem_is_shown_with_place_code_and_fix() -> None:
    problem = Problem(
        code="no-assistant-turn",
        message="no assistant turn",
        fix="add the answer",
        file="train.jsonl",
        line=41,
    )
    assert errors.rendered(problem) == (
        "train.jsonl:41 error no assistant turn [no-assistant-turn]\n    fix: add the answer"
    )


def test_tracebacks_go_to_the_log_only(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "train-1-0.log"
    try:
        raise ValueError("no idea")
    except ValueError as error:
        errors.log_traceback(error, log)
    text = log.read_text()
    assert "Traceback (most recent call last)" in text
    assert text.endswith("ValueError: no idea\n")


def test_a_log_that_cannot_be_written_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    errors.log_traceback(ValueError("no idea"), tmp_path / "logs" / "x.log")
