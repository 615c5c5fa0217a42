"""What a kubeconfig, or the service account of this pod, says about a cluster and its user."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_api.problem import Problem, Refused
from finetune_operator.resolve.paths import look

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_OVER_TLS = ("certificate-authority", "certificate-authority-data", "insecure-skip-tls-verify")
_WITH_CERTIFICATE = ("client-certificate", "client-certificate-data")

_ENTRY = re.compile(r"\S*/\{.*\}\S*", re.DOTALL)


def of_file(files: str, context: str | None, configuration: Any) -> tuple[str, str]:
    """Fill the client's configuration from a kubeconfig, or several with a colon between them.

    Returns namespace and context. Raises ``Refused`` where there is no such context, none is
    chosen, or the file cannot be used.
    """
    config: Any = importlib.import_module("kubernetes.config")
    merger: Any = importlib.import_module("kubernetes.config.kube_config").KubeConfigMerger
    try:
        merged = merger(files)
        known = {str(entry["name"]): entry for entry in _entries(merged, "contexts")}
        wanted = context or _current(merged.config_files.values())
        if not wanted or wanted not in known:
            raise Refused(_no_context(wanted, sorted(known)))
        _complete(merged, known[wanted].get("context") or {})
        with _heard() as errors:
            config.load_kube_config_from_dict(
                merged.config,
                context=wanted,
                client_configuration=configuration,
                persist_config=False,
            )
        if errors:
            raise _unusable(files, f"the command that logs in failed: {errors[0]}")
        return str(known[wanted].get("context", {}).get("namespace") or "default"), wanted
    except Refused:
        raise
    except config.ConfigException as error:
        # It repeats the whole entry that lacks something, and an entry holds credentials.
        raise _unusable(files, _ENTRY.sub("an entry of it", str(error))) from error
    except Exception as error:
        # The library lets out whatever a broken file makes of it: YAML, types, missing keys.
        first = str(error).partition("\n")[0]
        raise _unusable(files, f"it is no kubeconfig ({type(error).__name__}: {first})") from error


def _entries(merged: Any, section: str) -> list[Any]:
    """Return the contexts, clusters or users of all files."""
    return [node.value for node in merged.config.value[section]]


def _current(files: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the context that is chosen: of the first file that names one, as kubectl has it."""
    named = (file.get("current-context") for file in files)
    return next((str(name) for name in named if name), None)


def _no_context(wanted: str | None, known: Sequence[str]) -> Problem:
    there = ", ".join(known) or "none"
    if wanted:
        return Problem(
            code="context-not-found",
            message=f"the kubeconfig has no context {wanted}",
            fix=f"contexts: {there}",
        )
    return Problem(
        code="context-not-chosen",
        message="the kubeconfig has no current-context",
        fix=f"choose one with --context; contexts: {there}",
    )


def _complete(merged: Any, context: Mapping[str, Any]) -> None:
    """Give a server without a scheme the one that kubectl takes."""
    cluster = _named(merged, "clusters", context.get("cluster")).get("cluster")
    server = look(cluster, "server")
    if not isinstance(server, str) or not server or "://" in server:
        return
    user = _named(merged, "users", context.get("user")).get("user") or {}
    secure = any(map(cluster.get, _OVER_TLS)) or any(map(user.get, _WITH_CERTIFICATE))
    cluster["server"] = f"{'https' if secure else 'http'}://{server}"


def _named(merged: Any, section: str, name: object) -> Any:
    return next((one for one in _entries(merged, section) if one["name"] == name), {})


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect what the library logs: it goes on without credentials where it cannot get them."""
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(" ".join(record.getMessage().split()))

    listener = Listener(logging.ERROR)
    root = logging.getLogger()
    root.addHandler(listener)
    try:
        yield heard
    finally:
        root.removeHandler(listener)


def of_this_pod(configuration: Any) -> str:
    """Fill the client's configuration from the service account of this pod; returns its namespace.

    Raises ``Refused`` where there is none that can be used.
    """
    config: Any = importlib.import_module("kubernetes.config")
    try:
        config.load_incluster_config(client_configuration=configuration)
        return _SERVICE_ACCOUNT.read_text(encoding="utf-8").strip() or "default"
    except (config.ConfigException, OSError) as error:
        raise _unusable("the service account of this pod", str(error)) from error


def _unusable(what: str, why: str) -> Refused:
    first = why.strip().splitlines()[0] if why.strip() else "no reason was given"
    return Refused(
        Problem(
            code="kubeconfig-unusable",
            message=f"{what} cannot be used: {first}",
            fix="see whether kubectl get finetunejobs works with it",
        )
    )
