"""The operator's and the trainer's image, built from the Dockerfile by buildah and then cached.

No registry is needed: the base is made of Debian's packages. What does not change with the code is
built once for its lock file; the rest, and the archive that a node imports, is small.
``python -m harness.images`` builds those that are named, or both, with a word of progress.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.commands import PATH, attempt, run
from harness.oci_archive import Layout, write_on_top, write_renamed

ROOT = Path(__file__).resolve().parents[2]
OPERATOR = "operator"
TRAINER = "trainer"
TARGETS = (OPERATOR, TRAINER)
REGISTRY = "finetune.local"
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = ("python3", "python3-venv")
NOT_NEEDED = (
    *("var/cache/apt/*", "var/lib/apt/lists/*", "var/log/*", "var/cache/debconf/*-old"),
    *("usr/share/doc/*", "usr/share/man/*", "usr/share/info/*", "usr/share/lintian/*"),
    *("usr/share/locale/*", "etc/resolv.conf", "etc/hostname"),
)
"""Of the base: caches, pages, and what the machine left in it that made it."""
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE")
PROGRAMS = ("api", "operator", "trainer-image", "cli")
_INSTALL = "requirements/install-locked"
INPUTS = {
    "tools": (_INSTALL, "requirements/uv.txt", "requirements/build.txt"),
    "operator-packages": (_INSTALL, "requirements/operator.txt"),
    "trainer-packages": (_INSTALL, "requirements/trainer.txt"),
    "program": (*SOURCES, *PROGRAMS),
}
"""The files that a stage of the Dockerfile reads."""
KEPT = 8
"""Archives of older code that stay, a target; older packages go when newer ones are there."""


@dataclass(frozen=True)
class Image:
    """An image in an archive that ``ctr images import`` takes, after those of ``layers``."""

    reference: str
    archive: Path
    layers: tuple[Image, ...] = field(default=())
    """Images whose layers are named in this archive and only in theirs."""

    def tagged(self, tag: str) -> Image:
        """Return the same image under another tag, as a next version would be."""
        reference = f"{self.reference.rpartition(':')[0]}:{tag}"
        archive = self.archive.with_name(f"{self.archive.stem}-{tag}.tar")
        if not archive.is_file():
            write_renamed(Layout(self.archive), reference, archive)
        return Image(reference, archive, self.layers)


def operator_image() -> Image:
    """Return the operator's image, built first where this code has none yet."""
    return image(OPERATOR)


def trainer_image() -> Image:
    """Return the trainer's image, built first where this code has none yet."""
    return image(TRAINER)


def image(target: str) -> Image:
    """Return an image of this checkout; raises ``RuntimeError`` with what to install or mend."""
    found = _image(target, stage_keys())
    if not all(one.archive.is_file() for one in (found, *found.layers)):
        _check_tools()
        with _lock(target), _checkout() as checkout:  # another process may have built it meanwhile
            packages, found = _packages(target, checkout.keys), _image(target, checkout.keys)
            if not packages.archive.is_file():
                _build_packages(target, packages, checkout)
            if not found.archive.is_file():
                with _lock("stages"):
                    _build_image(target, found, packages, checkout)
    return found


def build_at_once(target: str, folder: Path) -> Layout:
    """Build a target in one go, as a user does, into an OCI layout at ``folder``."""
    _check_tools()
    with _lock("stages"), _checkout() as checkout:
        _bud(target, f"oci:{folder}:{target}", checkout, [])
        _prune()
    return Layout(folder)


def cache_folder() -> Path:
    """Return the folder of all built images and of what they are built from."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetunejob/images"


@dataclass(frozen=True)
class _Checkout:
    """The files of a build, which nobody edits while it runs, and the hashes of its stages."""

    root: Path
    keys: dict[str, str]


@contextmanager
def _checkout() -> Iterator[_Checkout]:
    """Copy what the Dockerfile reads."""
    with tempfile.TemporaryDirectory(dir=_temporary()) as folder:
        root = Path(folder)
        for name in ("Dockerfile", ".dockerignore", "requirements", *SOURCES, *PROGRAMS):
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, root / name, ignore=ignored)
            else:
                shutil.copy2(ROOT / name, root / name)
        yield _Checkout(root, stage_keys(root))


def stage_keys(root: Path = ROOT) -> dict[str, str]:
    """Return a hash for each stage of the Dockerfile: of its text, its files and what it builds on."""
    text = re.sub(r"^#.*\n", "", (root / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages = {
        found[2]: found[0]
        for found in re.finditer(r"^FROM (\S+) AS (\S+)\n(?:(?!FROM ).*\n)*", text, re.MULTILINE)
    }
    base = _hash("base", SUITE, MIRROR, *PACKAGES, *NOT_NEEDED)
    keys = {"base": base}
    for name, stage in stages.items():
        needs = [other for other in stages if re.search(rf"(?:FROM |from=){other}\b", stage)]
        files = [line for path in INPUTS.get(name, ()) for line in _files(root, path)]
        keys[name] = _hash(stage, base, *(keys[other] for other in needs if other in keys), *files)
    return keys


def _files(root: Path, name: str) -> Iterator[str]:
    path = root / name
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    for one in paths:
        if one.is_file() and "__pycache__" not in one.parts:
            yield f"{one.relative_to(root)} {hashlib.sha256(one.read_bytes()).hexdigest()}"


def _hash(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]


def _image(target: str, keys: dict[str, str]) -> Image:
    layers = (_packages(target, keys),) if target == TRAINER else ()
    archive = cache_folder() / keys[target] / f"{target}.tar"
    return Image(f"{REGISTRY}/{target}:{keys[target]}", archive, layers)


def _packages(target: str, keys: dict[str, str]) -> Image:
    stage = f"{target}-packages"
    return Image(f"{REGISTRY}/{stage}:{keys[stage]}", cache_folder() / keys[stage] / f"{stage}.tar")


# --- the steps --------------------------------------------------------------------------------------


def _build_packages(target: str, packages: Image, checkout: _Checkout) -> None:
    with _lock("stages"):
        contexts = [_stage("tools", checkout), _stage("runtime", checkout)]
    packages.archive.parent.mkdir(parents=True, exist_ok=True)
    part = packages.archive.with_suffix(".part")
    _bud(f"{target}-packages", f"oci-archive:{part}:{packages.reference}", checkout, contexts)
    _prune()
    part.replace(packages.archive)
    for older in cache_folder().glob(f"*/{packages.archive.name}"):
        if older != packages.archive:
            shutil.rmtree(older.parent)
    _say(f"{packages.reference}: {packages.archive.stat().st_size / 1e6:.0f} MB")


def _build_image(target: str, found: Image, packages: Image, checkout: _Checkout) -> None:
    """Build the last stage on what stands for its packages, then put it on top of them.

    The stage copies files and says how they run; with its real packages below, each change of a line
    would go through gigabytes.
    """
    runtime = _stage("runtime", checkout)
    contexts = [_stage("program", checkout, [_stage("tools", checkout)])]
    contexts.append((f"{target}-packages", runtime[1]))
    found.archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=found.archive.parent) as folder:
        upper = Layout(Path(folder) / "layout")
        _bud(target, f"oci:{upper.path}:{target}", checkout, contexts)
        below = Layout(packages.archive)
        with _step(f"{target}: writing {found.archive.name}"):
            _check_environment(below, upper)
            common = len(upper.manifest()["layers"]) - 1
            whole = target == OPERATOR
            write_on_top(below, upper, common, found.reference, found.archive, whole=whole)
    _forget_older(target)
    _say(f"{found.reference}: {Layout(found.archive).size() / 1e6:.0f} MB unpacked")


def _check_environment(packages: Layout, image: Layout) -> None:
    """Refuse packages that set what the stage on top of them, built without them, does not know."""
    missing = set(packages.config()["config"]["Env"]) - set(image.config()["config"]["Env"])
    if missing:
        raise RuntimeError(
            f"the Dockerfile sets {', '.join(sorted(missing))} in a stage of packages: "
            "set it in the runtime stage or in the last one"
        )


def _forget_older(target: str) -> None:
    archives = cache_folder().glob(f"*/{target}.tar")
    for older in sorted(archives, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(older.parent)


def _stage(
    name: str, checkout: _Checkout, contexts: list[tuple[str, str]] | None = None
) -> tuple[str, str]:
    """Return a stage's name and its image in buildah's own storage, built where it is not there."""
    reference = f"localhost/finetune-{name}:{checkout.keys[name]}"
    if not attempt(*_buildah(), "inspect", "--type", "image", reference):
        _bud(name, reference, checkout, contexts or [])
        _drop_older(reference)
    return name, reference


def _base(checkout: _Checkout) -> str:
    reference = f"localhost/finetune-base:{checkout.keys['base']}"
    if attempt(*_buildah(), "inspect", "--type", "image", reference):
        return reference
    with tempfile.TemporaryDirectory(dir=_temporary()) as folder:
        root = Path(folder) / "root"
        with _step(f"base: {' '.join(PACKAGES)} and Debian {SUITE}'s minimum"):
            options = ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
            run("debootstrap", *options, SUITE, root, MIRROR, timeout=900)
            for pattern in NOT_NEEDED:
                for path in root.glob(pattern):
                    whole = path.is_dir() and not path.is_symlink()
                    shutil.rmtree(path) if whole else path.unlink()
        with _step("base: writing the image"):
            container = run(*_buildah(), "from", "scratch").strip()
            try:
                run(*_buildah(), "copy", "--quiet", container, root, "/")
                run(*_buildah(), "config", "--cmd", "bash", container)
                run(*_buildah(), "commit", "--quiet", container, reference)
            finally:
                run(*_buildah(), "rm", container)
    _drop_older(reference)
    return reference


def _drop_older(reference: str) -> None:
    repository = reference.rpartition(":")[0]
    listed = run(*_buildah(), "images", "--format", "{{.Name}}:{{.Tag}}").split()
    for one in listed:
        if one.startswith(f"{repository}:") and one != reference:
            attempt(*_buildah(), "rmi", one)  # which fails where it is in use


def _prune() -> None:
    """Remove the images of stages that were made on the way and have no name."""
    attempt(*_buildah(), "rmi", "--prune")


def _bud(target: str, output: str, checkout: _Checkout, contexts: list[tuple[str, str]]) -> None:
    """Build one stage of the Dockerfile into buildah's storage, a folder or an archive."""
    base = _base(checkout)
    version = tomllib.loads((checkout.root / "pyproject.toml").read_text())["project"]["version"]
    words = [
        *("--isolation", "chroot", "--layers=false", "--format", "oci", "--disable-compression"),
        *("--pull-never", "--target", target, "--tag", output, "--build-arg", f"VERSION={version}"),
        *("--build-arg", f"BASE_IMAGE={base}"),
        *(f"--build-context={name}=docker-image://{image}" for name, image in contexts),
        *_secrets(),
    ]
    with _step(f"{target}: building"):
        done = subprocess.run(
            [*map(str, _buildah()), "bud", *words, str(checkout.root)],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PATH": PATH, "TMPDIR": str(_temporary())},
        )
    if done.returncode:
        raise RuntimeError(
            f"building {target} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-6000:]}"
        )


def _secrets() -> list[str]:
    """Return what tells the build where this machine takes packages from, and whom it trusts."""
    found = []
    settings = _temporary() / "pip.conf"
    lines = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    given = dict(line.split("=", 1) for line in lines if "=" in line)
    index = given.get(":env:.index-url") or given.get("global.index-url")
    settings.touch(mode=0o600)
    settings.write_text(
        f"[global]\nindex-url = {index.strip(chr(39))}\n" if index else "[global]\n"
    )
    found.append(f"--secret=id=pip.conf,src={settings}")
    for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        if Path(os.environ.get(name, "")).is_file():
            found.append(f"--secret=id=certificates,src={os.environ[name]}")
            break
    return found


# --- the tool ---------------------------------------------------------------------------------------


@functools.cache
def _buildah() -> tuple[str | Path, ...]:
    """Return the command with a storage of our own; overlays where the machine can make them."""
    for driver in ("overlay", "vfs"):
        folder = cache_folder() / "storage" / driver
        folder.mkdir(parents=True, exist_ok=True)
        options = ("--root", folder, "--runroot", folder / "run", "--storage-driver", driver)
        if attempt("buildah", *options, "info"):
            return ("buildah", *options)
    raise RuntimeError(f"buildah can keep no images in {folder.parent}")


@functools.cache
def _temporary() -> Path:
    """Return where buildah writes for a while, with this machine's cache of downloaded packages."""
    folder = cache_folder() / "tmp"
    packages = Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache/uv")
    packages.mkdir(parents=True, exist_ok=True)
    cache = folder / "buildah-cache/finetune-uv"  # its place for --mount=type=cache,id=finetune-uv
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.unlink(missing_ok=True)
    cache.symlink_to(packages)
    return folder


def _check_tools() -> None:
    if os.geteuid():
        raise RuntimeError("building images needs root: run it with sudo")
    missing = [tool for tool in ("buildah", "debootstrap") if not shutil.which(tool, path=PATH)]
    if missing:
        raise RuntimeError(
            f"building images needs {' and '.join(missing)}: "
            f"apt-get install --yes {' '.join(missing)}"
        )


@contextmanager
def _lock(name: str) -> Iterator[None]:
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _step(name: str) -> Iterator[None]:
    began = time.monotonic()
    _say(f"{name} ...")
    yield
    _say(f"{name}: {time.monotonic() - began:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Build what is not there yet and print references and archives."""
    names = sys.argv[1:] or TARGETS
    wrong = set(names) - set(TARGETS)
    if wrong:
        _say(f"no such image: {', '.join(sorted(wrong))}; there are {' and '.join(TARGETS)}")
        return 2
    began = time.monotonic()
    try:
        for name in names:
            made = image(name)
            for one in (*made.layers, made):
                print(f"{one.reference}\t{one.archive}\t{one.archive.stat().st_size / 1e6:.0f} MB")
    except RuntimeError as error:
        _say(f"images: {error}")
        return 1
    _say(f"images: {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
