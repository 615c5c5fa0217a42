"""The images as pods run them: any user, a read-only root, nothing but /tmp to write to."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune_operator.render import environment
from harness.image_runs import Mounted, mounted
from harness.images import ROOT, Image, build_at_once, operator_image, stage_keys
from harness.oci_archive import Layout

ANYONE = random.Random().randrange(10_000, 2_000_000_000)
"""A user whom no file knows, another in each run, as OpenShift gives to a namespace."""
USERS = [(ANYONE, 0), (ANYONE, ANYONE + 1)]
SITE = "opt/finetune/lib/python3.11/site-packages"


@pytest.fixture(scope="module")
def both(images: tuple[Image, Image]) -> Iterator[list[Mounted]]:
    with mounted(images) as found:
        yield found


@pytest.fixture(scope="module")
def operator(both: list[Mounted]) -> Mounted:
    return both[0]


@pytest.fixture(scope="module")
def trainer(both: list[Mounted]) -> Mounted:
    return both[1]


def installed(image: Mounted) -> dict[str, str]:
    """Return version by name of all packages in an image."""
    found = (image.root / SITE).glob("*.dist-info")
    pairs = [path.name.removesuffix(".dist-info").rsplit("-", 1) for path in found]
    return {name.lower().replace("_", "-").replace(".", "-"): version for name, version in pairs}


def locked(name: str) -> dict[str, str]:
    text = (ROOT / f"requirements/{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", text, re.MULTILINE))


def test_the_operator_is_small(images: tuple[Image, Image], operator: Mounted) -> None:
    assert Layout(images[0].archive).size() < 200e6
    packages = installed(operator)
    assert "kopf" in packages
    assert not {"torch", "transformers", "numpy", "triton", "pip", "setuptools"} & set(packages)
    assert not [name for name in packages if name.startswith("nvidia")]


@pytest.mark.parametrize("name", ["operator", "trainer"])
def test_what_is_locked_is_installed_and_nothing_else(both: list[Mounted], name: str) -> None:
    packages = installed(both[name == "trainer"])
    assert packages.pop("finetunejob") == "0.1.0"
    assert packages == locked(name)


@pytest.mark.parametrize("user", USERS)
def test_each_command_runs_for_any_user(
    operator: Mounted, trainer: Mounted, user: tuple[int, int], tmp_path: Path
) -> None:
    for image, command, words in (
        (operator, "finetune-operator", "--trainer-image"),
        (trainer, "finetune-trainer", "{prepare,train,publish,generate}"),
    ):
        ended = image.run(command, "--help", tmp=tmp_path, user=user)
        assert ended.code == 0, ended.text
        assert words in ended.text
    said = trainer.run("sh", "-c", "id -u; id -g; touch /opt/x", tmp=tmp_path, user=user)
    assert said.text.split()[:2] == [str(user[0]), str(user[1])]
    assert "Read-only file system" in said.text


@pytest.mark.parametrize("user", USERS)
def test_the_trainers_libraries_import(
    trainer: Mounted, user: tuple[int, int], tmp_path: Path
) -> None:
    code = """
import getpass, json, deepspeed, peft, torch, transformers
import finetune_trainer.rank
print(json.dumps([getpass.getuser(), *(m.__version__ for m in (deepspeed, peft, transformers))]))
"""
    ended = trainer.run("python", "-c", code, tmp=tmp_path, user=user, timeout=240)
    assert ended.code == 0, ended.text
    versions = locked("trainer")
    names = ("deepspeed", "peft", "transformers")
    assert json.loads(ended.text.splitlines()[-1]) == ["finetune", *(versions[n] for n in names)]


def test_bytecode_is_there_and_never_compared_with_its_source(both: list[Mounted]) -> None:
    for image in both:
        sources = [
            *(image.root / SITE).glob("finetune_*/*.py"),
            image.root / SITE / "yaml/nodes.py",
        ]
        assert len(sources) > 20
        for path in sources:
            compiled = path.parent / f"__pycache__/{path.stem}.cpython-311.pyc"
            assert compiled.read_bytes()[4:8] == b"\1\0\0\0", path
    # of the standard library too, by what the base has
    assert (both[0].root / "usr/lib/python3.11/asyncio/__pycache__/tasks.cpython-311.pyc").is_file()


def test_the_environment_is_that_of_a_pod(operator: Mounted, trainer: Mounted) -> None:
    given = trainer.environment()
    assert given.items() >= {**environment.SCRATCH, **environment.SILENT}.items()
    assert (given["HF_HUB_OFFLINE"], given["TRANSFORMERS_OFFLINE"]) == ("1", "1")
    assert {"HOME": "/tmp/home", "TMPDIR": "/tmp", "DO_NOT_TRACK": "1"}.items() <= (
        operator.environment().items()
    )
    for image in (operator, trainer):
        assert image.runs["User"] == "65532:65532"
        assert image.runs["Labels"]["org.opencontainers.image.version"] == "0.1.0"


def test_neither_secrets_nor_an_index_are_in_the_images(
    images: tuple[Image, Image], both: list[Mounted]
) -> None:
    for image, found in zip(images, both, strict=True):
        told = json.dumps(Layout(image.archive).config())
        assert not re.search(r"https?://|index-url|password|token", told, re.IGNORECASE)
        root = found.root
        for name in ("etc/pip.conf", "root/.cache", "root/.config", "root/.netrc", "etc/uv"):
            assert not (root / name).exists(), name
        for folder in ("run/secrets", "tmp", "var/cache/apt/archives", "var/lib/apt/lists"):
            assert [path for path in (root / folder).rglob("*") if path.is_file()] == [], folder
        for path in (root / "opt/finetune").rglob("direct_url.json"):
            assert json.loads(path.read_text())["url"].startswith("file:///"), path


def test_no_file_is_for_everyone_to_write(both: list[Mounted]) -> None:
    for image in both:
        files = (path for path in (image.root / "opt").rglob("*") if not path.is_symlink())
        assert [str(path) for path in files if path.stat().st_mode & 0o002] == []


UNREACHABLE = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: nobody}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""


def files_of(image: Layout) -> dict[str, tuple[object, ...]]:
    """Return kind, rights, owner and length of each file; of bytecode, which has a time, no length."""
    found: dict[str, tuple[object, ...]] = {}
    for layer in image.manifest()["layers"]:
        for one in image.members(layer):
            length = 0 if one.name.endswith(".pyc") else one.size
            found[one.name.rstrip("/")] = (one.type, one.mode, one.uid, one.gid, length)
    return found


def test_what_is_built_in_parts_is_what_a_user_builds(tmp_path: Path) -> None:
    before = stage_keys()
    whole = build_at_once("operator", tmp_path / "layout")
    parts = Layout(operator_image().archive)
    if stage_keys() != before:
        pytest.skip("the sources were edited while they were built")
    assert whole.config()["config"] == parts.config()["config"]
    assert len(whole.config()["history"]) == len(parts.config()["history"])
    assert files_of(whole) == files_of(parts)
    assert len(files_of(whole)) > 5000


def test_the_operator_ends_when_it_is_told(operator: Mounted, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(UNREACHABLE)
    (tmp_path / "config").chmod(0o644)
    started = operator.start([], tmp_path, user=USERS[1], environment={"KUBECONFIG": "/tmp/config"})
    deadline = time.monotonic() + 60
    while "no answer to GET" not in started.text():
        assert started.popen.poll() is None, started.text()
        assert time.monotonic() < deadline, started.text()
        time.sleep(0.1)
    began = time.monotonic()
    assert started.signal("TERM")
    assert started.wait(30).code == 0, started.text()
    assert time.monotonic() - began < 15  # not killed after its grace period


def test_the_operator_ends_even_while_it_starts(operator: Mounted, tmp_path: Path) -> None:
    """A signal without a handler is lost on PID 1: this one comes before the imports are through."""
    started = operator.start(
        ["python", "-c", "import finetune_operator.start as s, os\n"
         "read, write = os.pipe()\n"
         "open('/tmp/begun', 'w').close()\n"
         "import sys; sys.argv = ['finetune-operator', '--workers', '1']\n"
         "import builtins; real = builtins.__import__\n"
         "def slow(name, *rest):\n"
         "    if name == 'finetune_operator.main': open('/tmp/importing', 'w').close(); import time; time.sleep(60)\n"
         "    return real(name, *rest)\n"
         "builtins.__import__ = slow\n"
         "s.main()\n"],
        tmp_path, user=USERS[0],
    )  # fmt: skip
    wait_for(tmp_path / "importing")
    began = time.monotonic()
    assert started.signal("TERM")
    assert started.wait(30).code == 143, started.text()
    assert time.monotonic() - began < 15  # not killed after its grace period


def test_the_trainer_passes_a_signal_on(trainer: Mounted, tmp_path: Path) -> None:
    """Its child waits for a configuration that never comes; PID 1 keeps the code of its end."""
    os.mkfifo(tmp_path / "job.json")
    (tmp_path / "job.json").chmod(0o666)
    started = trainer.start(
        ["finetune-trainer", "train", "--config", "/tmp/job.json"], tmp_path, user=USERS[1]
    )
    with opened_to_write(tmp_path / "job.json"):
        assert started.popen.poll() is None, started.text()
        began = time.monotonic()
        assert started.signal("TERM")
        assert started.wait(30).code == 143, started.text()
    assert time.monotonic() - began < 15  # not killed after its grace period


@contextmanager
def opened_to_write(fifo: Path, seconds: float = 60) -> Iterator[None]:
    """Hold a FIFO open once somebody reads it, and write nothing."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError:
            assert time.monotonic() < deadline, f"nobody reads {fifo}"
            time.sleep(0.1)
    try:
        yield
    finally:
        os.close(descriptor)


def wait_for(path: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not made"
        time.sleep(0.05)


def test_triton_finds_a_compiler_and_pythons_headers(trainer: Mounted, tmp_path: Path) -> None:
    code = '''
from triton.runtime.build import compile_module_from_src
made = compile_module_from_src("""
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, 0}, {0, 0, 0, 0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "tried", 0, -1, methods};
PyMODINIT_FUNC PyInit_tried(void) { return PyModule_Create(&module); }
""", "tried")
print(made.answer(), made.__file__)
'''
    ended = trainer.run("python", "-c", code, tmp=tmp_path, user=USERS[1])
    assert ended.code == 0, ended.text
    answer, file = ended.text.split()[-2:]
    assert (answer, file.startswith("/tmp/cache/triton/")) == ("42", True)


def test_deepspeed_finds_all_headers_for_its_kernels(trainer: Mounted, tmp_path: Path) -> None:
    """Compiling them takes minutes; what they include is found in seconds."""
    code = """
import subprocess, sysconfig
from deepspeed.ops.op_builder import CPUAdamBuilder
from torch.utils.cpp_extension import include_paths
builder = CPUAdamBuilder()
folders = [builder.deepspeed_src_path(path) for path in builder.include_paths()]
folders += [*include_paths(), sysconfig.get_path("include")]
sources = [builder.deepspeed_src_path(path) for path in builder.sources()]
command = ["c++", "-std=c++20", "-M", *(f"-I{folder}" for folder in folders), *sources]
found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
print(len(sources), found.count("/torch/extension.h"), found.count("/Python.h"))
subprocess.run(["ninja", "--version"], check=True)
"""
    ended = trainer.run("python", "-c", code, tmp=tmp_path, user=USERS[0])
    assert ended.code == 0, ended.text
    assert "\n2 2 2\n" in ended.text
