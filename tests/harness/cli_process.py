"""The command line, asked of a cluster: as a process that goes on, or in this one to its end."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from finetune_cli.main import main
from harness.operator_driver import wait_for


class Cli:
    """A process of the command line, whose output is there as it comes."""

    def __init__(
        self,
        kubeconfig: Path,
        folder: Path,
        *words: str,
        program: Sequence[str] = (sys.executable, "-m", "finetune_cli.main"),
    ) -> None:
        """Start it in a folder."""
        self.lines: list[str] = []
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [*program, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=environment,
        )
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def said(self, text: str) -> None:
        """Wait until a line has this text."""
        wait_for(lambda: any(text in line for line in self.lines), timeout=60)

    def end(self, timeout: float = 60) -> tuple[int, list[str]]:
        """Wait until it ends; returns its exit status and its lines."""
        code = self.process.wait(timeout)
        self.thread.join(10)
        return code, self.lines


@contextmanager
def cli(kubeconfig: Path, folder: Path, *words: str, **more: Any) -> Iterator[Cli]:
    """Have a command run for the length of a block."""
    started = Cli(kubeconfig, folder, *words, **more)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.wait(10)
        assert started.process.stdout is not None
        started.process.stdout.close()


def ended(kubeconfig: Path, folder: Path, *words: str) -> tuple[int, list[str]]:
    """Run a command that ends by itself, in this process; returns its exit status and its lines."""
    out = io.StringIO()
    before = os.environ.get("KUBECONFIG")
    os.environ["KUBECONFIG"] = str(kubeconfig)
    try:
        with chdir(folder), redirect_stdout(out), redirect_stderr(out):
            code = main(words)
    finally:
        os.environ.pop("KUBECONFIG")
        if before is not None:
            os.environ["KUBECONFIG"] = before
    return code, out.getvalue().splitlines()
