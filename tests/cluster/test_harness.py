"""What the tests start is real, is built once, and leaves nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import binaries
from harness.control_plane import ApiError, start_control_plane
from harness.processes import start, wait_until

TESTS = Path(__file__).parents[1]


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_control_plane_leaves_nothing():
    plane = start_control_plane()
    try:
        assert plane.api.get("/version")["gitVersion"].startswith("v1.")
        assert plane.api.get("/api/v1/namespaces/default")["metadata"]["name"] == "default"
        with pytest.raises(ApiError) as refused:
            plane.api.get("/api/v1/namespaces/none")
        assert refused.value.code == 404
        pids = [process.pid for process in plane.processes]
        assert all(alive(pid) for pid in pids)
    finally:
        plane.stop()

    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)
    assert not plane.folder.exists()


def test_a_process_does_not_outlive_the_tests(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from harness.processes import start\n"
        "child = start('sleep', ['sleep', '300'], Path(sys.argv[1]))\n"
        "print(child.pid, flush=True); time.sleep(300)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "log"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)

    assert not alive(child)


def test_a_process_that_ends_early_is_told_with_its_log(tmp_path):
    process = start("broken", ["sh", "-c", "echo no such flag; exit 3"], tmp_path / "log")
    with pytest.raises(RuntimeError, match=r"broken ended with 3 before .*\n.*no such flag"):
        wait_until(lambda: False, "it was ready", [process])


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A small Go module in place of the real ones."""
    if not shutil.which("go"):
        pytest.skip("no Go: binaries come from KUBEBUILDER_ASSETS")
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setattr(binaries, "GO", tmp_path / "go")
    monkeypatch.setattr(binaries, "SOURCES", {"hello": binaries.Source("hello", "./hello")})
    folder = tmp_path / "go/hello"
    (folder / "hello").mkdir(parents=True)
    (folder / "go.mod").write_text("module finetune.dev/hello\n\ngo 1.24\n")
    (folder / "go.sum").write_text("")
    (folder / "hello/main.go").write_text('package main\n\nfunc main() { println("hello") }\n')
    return folder


def test_a_binary_is_built_once(module, tmp_path):
    path = binaries.binary("hello", tmp_path / "cache")
    built = path.stat()

    assert subprocess.run([path], check=False, capture_output=True, text=True).stderr == "hello\n"
    assert binaries.binary("hello", tmp_path / "cache") == path
    assert path.stat().st_mtime_ns == built.st_mtime_ns
    assert sorted(file.name for file in path.parent.iterdir()) == [".lock", "hello"]


def test_other_sources_are_another_folder(module, tmp_path):
    before = binaries.folder_of("hello", tmp_path)
    (module / "go.sum").write_text("example.org/x v1.0.0 h1:AAAA=\n")

    assert binaries.folder_of("hello", tmp_path) != before


def test_a_failed_build_says_why(module, tmp_path):
    (module / "hello/main.go").write_text("package main\n\nfunc main() { nowhere() }\n")
    with pytest.raises(RuntimeError, match=r"(?s)building hello failed:.*undefined: nowhere"):
        binaries.binary("hello", tmp_path / "cache")


def test_a_folder_of_binaries_wins(module, tmp_path, monkeypatch):
    (tmp_path / "hello").write_text("")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))

    assert binaries.binary("hello", tmp_path / "cache") == tmp_path / "hello"
