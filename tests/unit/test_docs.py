"""The commands that the pages tell their readers to type exist, and the cheap ones are run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)\)|src=\"([^\"]+)\"")
RUN_HERE = {"validate", "explain", "watch", "version"}
"""Verbs that take seconds. ``--data`` needs the model; the demo runs that."""


def commands() -> list[tuple[str, list[str]]]:
    """Return (page, words) of every line of every ``sh`` block."""
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    found.append((str(page.relative_to(ROOT)), words))
    return found


COMMANDS = commands()


def test_pages_have_commands() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/use/quickstart.md"} <= {c[0] for c in COMMANDS}
    assert ["make", "demo"] in [words for _, words in COMMANDS]
    assert ["make", "test"] in [words for _, words in COMMANDS]


@pytest.mark.parametrize(("page", "words"), COMMANDS)
def test_command_exists(page: str, words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(
            r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
        )
        assert words[1] in targets, f"{page}: no such target"
        return
    assert words[0] == ".venv/bin/finetune", f"{page}: unknown command {words[0]}"
    assert words[1] in cli.VERBS, f"{page}: no such verb"
    for word in words[2:]:
        if word.startswith("examples/"):
            assert (ROOT / word).exists(), f"{page}: {word} does not exist"


@pytest.mark.parametrize(
    ("page", "words"),
    [c for c in COMMANDS if c[1][1] in RUN_HERE and "--data" not in c[1]],
)
def test_cheap_command_runs(page: str, words: list[str]) -> None:
    command = [sys.executable, "-m", "finetune_cli.main", *words[1:]]
    ended = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, f"{page}: {ended.stdout}{ended.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = match.group(1) or match.group(2)
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{target} does not exist"
