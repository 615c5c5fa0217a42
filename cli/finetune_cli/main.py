"""``finetune``, also installed as ``kubectl-finetune``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from types import ModuleType

VERBS = {
    "run": ("finetune_cli.run.command", "run a job on this machine"),
    "validate": ("finetune_cli.validate", "check a job file, and its data with --data"),
    "explain": ("finetune_cli.explain", "show every value of a job and where it comes from"),
    "watch": ("finetune_cli.watch", "follow a job that runs"),
    "logs": ("finetune_cli.logs", "show what the processes of a job print"),
    "report": ("finetune_cli.report", "show the figures of a job and where its report lies"),
    "retry": ("finetune_cli.retry", "let a failed job of a cluster try again"),
    "version": ("finetune_cli.version", "print versions"),
}
"""Verb to the module that knows it and to what it does. A module has ``add_parser(subparsers)``
and ``main(arguments) -> int``; only the module of the verb at hand is imported."""

_EXTRAS = {"rich": "cli", "ruamel": "cli", "kubernetes": "cli", "kopf": "operator"}


CUT_OFF = 141
"""Exit code of a verb whose reader has gone away: that of a process that SIGPIPE has ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    code: int | None = None
    _open_streams()
    try:
        arguments, module = _parse(words)
        code = int(module.main(arguments))
        sys.stdout.flush()
        return code
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing.startswith("finetune_"):
            raise
        extra = _EXTRAS.get(missing, "trainer")
        print(
            f"finetune: {missing} is not installed\nfix: pip install 'finetunejob[{extra}]'",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        _hush()
        return CUT_OFF if code is None else code
    except OSError as error:
        _say(f"finetune: cannot go on: {_words(error)}")
        _hush()
        return code or 1
    except KeyboardInterrupt:
        return 130


def _open_streams() -> None:
    """Let every output take every text, and be the null device where it was closed (``>&-``).

    A path may hold bytes that are no text, and no other file may get the number of an output.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _words(error: OSError) -> str:
    named = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{named}"


def _say(text: str) -> None:
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _hush() -> None:
    """Send what is left of the outputs nowhere: Python must not complain about it at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(null, stream.fileno())
    os.close(null)


def _parse(words: list[str]) -> tuple[argparse.Namespace, ModuleType]:
    """Return the arguments and the module of the verb; leaves with 2 where they are wrong."""
    verb = next((word for word in words if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="kubectl finetune" if _by_kubectl() else "finetune",
        description="Fine-tune models from one short FineTuneJob file.",
    )
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    loaded: ModuleType | None = None
    for name, (module, help_text) in VERBS.items():
        if name == verb:
            loaded = importlib.import_module(module)
            loaded.add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=help_text)
    arguments = parser.parse_args(words)
    assert loaded is not None  # parse_args refuses a verb that is not in the table
    return arguments, loaded


def _by_kubectl() -> bool:
    return os.path.basename(sys.argv[0]) == "kubectl-finetune"  # noqa: PTH119


if __name__ == "__main__":
    sys.exit(main())
