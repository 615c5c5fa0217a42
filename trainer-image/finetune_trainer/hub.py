"""Fetching a snapshot from a model hub, and what to do when that fails."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.names import Layout
from finetune_api.problem import Problem
from finetune_api.quantity import format_bytes
from finetune_api.resolved import StageConfig
from finetune_api.source import SecretKeyRef, Source
from finetune_trainer.errors import StageError

log = logging.getLogger(__name__)

SECRETS = Path("/etc/finetune/secrets")
"""Secrets are mounted as ``<name>/<key>``; locally HF_TOKEN stands in."""
TERMS = ["LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*"]
"""What a model may be used for; it goes with everything that is made of it."""
PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
PATTERNS += ["README.md", *TERMS]
UNWANTED = ["*/*", "consolidated*.safetensors"]
"""Folders, and a second copy of the weights that transformers does not read."""
CONVERT = (
    'convert it once to safetensors: python -c "from transformers import AutoModelForCausalLM as M;'
    " M.from_pretrained('FOLDER').save_pretrained('NEW')\" and copy the tokenizer files beside it"
)


def unavailable(code: str, message: str, fix: str, field: str = "spec.model.uri") -> StageError:
    """Return the error of a model that cannot be used."""
    return StageError(
        ExitCode.MODEL_UNAVAILABLE,
        Problem(code=code, message=message[:1024], fix=fix[:1024], field=field),
    )


def download(config: StageConfig, source: Source, layout: Layout) -> tuple[str, Path]:
    """Download a snapshot next to its final place; returns (commit, folder)."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    model = config.job.spec.model
    token = read_token(model.token_secret_ref)
    disable_progress_bars()
    with _explained(model.uri, model.revision, has_token=bool(token)):
        info = HfApi(endpoint=model.endpoint, token=token or False).model_info(
            source.name, revision=model.revision, files_metadata=True
        )
        names = [s.rfilename for s in info.siblings or [] if not _matches(s.rfilename, UNWANTED)]
        if not any(name.endswith(".safetensors") for name in names):
            pickled = next((n for n in names if n.endswith((".bin", ".pt", ".pth"))), None)
            raise unavailable(
                "model-not-safetensors" if pickled else "model-weights-missing",
                f"{model.uri} has {pickled or 'no weights'}"
                + (" but no *.safetensors; pickled weights can run code" if pickled else ""),
                "use a revision with safetensors, or " + CONVERT,
            )
        commit = str(info.sha)
        staging = layout.model / f".download-{commit[:16]}"
        staging.mkdir(parents=True, exist_ok=True)
        chosen = [
            s
            for s in info.siblings or []
            if _matches(s.rfilename, PATTERNS) and not _matches(s.rfilename, UNWANTED)
        ]
        total = sum(s.size or 0 for s in chosen)
        _check_room(staging, total, model.uri)
        with _progress(staging, total, model.uri):
            snapshot_download(
                source.name,
                revision=commit,
                endpoint=model.endpoint,
                token=token or False,
                local_dir=staging,
                allow_patterns=PATTERNS,
                ignore_patterns=UNWANTED,
                max_workers=4,
            )
        short = [s.rfilename for s in chosen if _size(staging / s.rfilename) != s.size]
        if short:
            raise OSError(f"{short[0]} did not arrive whole")
    shutil.rmtree(staging / ".cache", ignore_errors=True)
    return commit, staging


def _size(path: Path) -> int | None:
    """Return a file's size; None where there is none."""
    return path.stat().st_size if path.is_file() else None


def _matches(name: str, patterns: list[str]) -> bool:
    """Return whether a file's name matches one of several patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_room(staging: Path, total: int, uri: str) -> None:
    """Raise ``StageError`` (14) where what is still to be fetched has no room."""
    missing = total - sum(p.stat().st_size for p in staging.rglob("*") if p.is_file())
    free = shutil.disk_usage(staging).free
    if missing <= free:
        return
    raise StageError(
        ExitCode.STORAGE_FULL,
        Problem(
            code="no-room",
            message=f"fetching {uri} needs {format_bytes(missing)}, {format_bytes(free)} free in "
            "the workspace",
            fix=f"free {format_bytes(missing - free)}, or use a larger volume (spec.workspace)",
            field="spec.workspace",
        ),
    )


def read_token(reference: SecretKeyRef | None) -> str | None:
    """Return the hub's token: the mounted secret, else HF_TOKEN."""
    if reference is not None:
        mounted = SECRETS / reference.name / reference.key
        if mounted.is_file():
            return mounted.read_text(encoding="utf-8").strip()
    return os.environ.get("HF_TOKEN") or None


@contextmanager
def _progress(folder: Path, total: int, uri: str, every: float = 10.0) -> Iterator[None]:
    """Log how far a download is while the body runs."""
    done = threading.Event()

    def report() -> None:
        while not done.wait(every):
            have = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            log.info("%s: %s of %s", uri, format_bytes(have), format_bytes(total))

    log.info("fetching %s (%s)", uri, format_bytes(total))
    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _explained(uri: str, revision: str | None, *, has_token: bool) -> Iterator[None]:
    """Turn a hub's errors into what to do about them."""
    from huggingface_hub import errors

    at = f" at {revision}" if revision else ""
    secret = (
        "check the token of spec.model.tokenSecretRef"
        if has_token
        else ("set spec.model.tokenSecretRef (locally: HF_TOKEN)")
    )
    cases: list[tuple[type[BaseException], Callable[[], StageError]]] = [
        (
            errors.GatedRepoError,
            lambda: unavailable(
                "model-gated",
                f"{uri} is gated: its terms have to be accepted",
                f"accept them on the model's page, and {secret}",
            ),
        ),
        (
            errors.RevisionNotFoundError,
            lambda: unavailable(
                "model-revision-not-found",
                f"{uri} has no revision {revision}",
                "name a branch, tag or commit that exists",
                field="spec.model.revision",
            ),
        ),
        (
            errors.RepositoryNotFoundError,
            lambda: unavailable(
                "model-not-found",
                f"{uri}{at} does not exist, or may not be seen",
                f"check the name; for a private model {secret}",
            ),
        ),
        (
            errors.OfflineModeIsEnabled,
            lambda: unavailable(
                "hub-offline",
                f"{uri} cannot be fetched: the network is off (HF_HUB_OFFLINE)",
                "copy the model to a claim and use pvc://claim/path, or ask for network access",
            ),
        ),
    ]
    try:
        yield
    except StageError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE:
            raise
        for kind, explain in cases:
            if isinstance(error, kind):
                raise explain() from error
        raise _failure(uri, error, secret) from error


def _failure(uri: str, error: Exception, secret: str) -> StageError:
    """Return the error of a hub that answered badly or not at all.

    What may be over in a minute ends with a code that is tried again.
    """
    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    if status in {401, 403}:
        return unavailable("model-forbidden", f"{uri}: the hub answered {status}", secret)
    said = (str(error).splitlines() or [""])[0][:300] or type(error).__name__
    if any(_CERTIFICATE in str(cause) for cause in _chain(error)):
        return unavailable(
            "hub-not-trusted",
            f"{uri} cannot be fetched: {said}",
            "let the trainer trust who signed the hub's certificate (SSL_CERT_FILE), or correct "
            "spec.model.endpoint",
        )
    reason = f"the hub answered {status}" if status else said
    final = status < 500 and status not in _BUSY if status else _is_final(error)
    return StageError(
        ExitCode.MODEL_UNAVAILABLE if final else ExitCode.COMMUNICATION_LOST,
        Problem(
            code="hub-unreachable",
            message=f"{uri} cannot be fetched: {reason}",
            fix="check the network and spec.model.endpoint, or copy the model to a claim (pvc://)",
            field="spec.model.uri",
        ),
    )


def _is_final(error: Exception) -> bool:
    """Return whether an error comes from what was asked: its address, or a value in it.

    What is not known may come from the network: libraries below have errors of their own.
    """
    asked = (ValueError, TypeError, LookupError, AttributeError)
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & _ADDRESS) or (isinstance(error, asked) and not isinstance(error, OSError))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        yield current
        seen.append(current)
        current = current.__cause__ or current.__context__


_BUSY = frozenset({408, 425, 429})
_ADDRESS = frozenset({"InvalidURL", "UnsupportedProtocol"})
"""The HTTP library's names; which library it is differs between versions of the hub's."""
_CERTIFICATE = "CERTIFICATE_VERIFY_FAILED"
_OF_THIS_MACHINE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS})
"""What writing into the workspace ends with; errors of the network have none of these."""
