"""The commands that the pages tell their readers to type exist, and the cheap ones are run.

Those that need a cluster are read here and run in the end-to-end tests.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from finetune_api.status import ConditionType, JobStatus
from finetune_cli import main as cli
from harness.doc_commands import DocCommand, commands_in

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("*.md", "docs/**/*.md", "charts/*/*.md", "examples/*.md")
PAGES = sorted(page for place in PLACES for page in ROOT.glob(place))
BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
OPENING = re.compile(r"^ *```([^`\n]+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)\)|src=\"([^\"]+)\"")
RUN_HERE = {"validate", "explain", "watch", "version"}
"""Verbs that take seconds. ``--data`` needs the model; the demo runs that."""
PROGRAMS = {
    "kubectl",
    "helm",
    "finetune",
    "sed",
    "echo",
    "docker",
    "make",
    "printf",
    "cat",
    "grep",
    "mkdir",
}


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
ON_A_CLUSTER = [command for page in PAGES for command in commands_in(page, ROOT)]


def test_pages_have_commands() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/use/quickstart.md"} <= {c[0] for c in COMMANDS}
    assert ["make", "demo"] in [words for _, words in COMMANDS]
    assert ["make", "test"] in [words for _, words in COMMANDS]
    assert {
        "README.md",
        "docs/use/fill-volumes.md",
        "docs/use/run-on-a-cluster.md",
        "docs/use/preemption.md",
        "docs/use/fix-a-failed-job.md",
    } <= {command.page for command in ON_A_CLUSTER}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_stands_where_no_test_finds_it(page: Path) -> None:
    opened = {info.strip() for info in OPENING.findall(page.read_text(encoding="utf-8"))}
    assert opened <= {"sh", "console cluster", "text", "yaml", "json", "mermaid"}


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


def simple(command: DocCommand) -> list[list[str]]:
    """Return the words of each program of a command that may have pipes."""
    found: list[list[str]] = [[]]
    for word in command.words:
        if word in ("|", "||", "&&", ";"):
            found.append([])
        else:
            found[-1].append(word)
    return found


@pytest.mark.parametrize("command", ON_A_CLUSTER, ids=str)
def test_command_for_a_cluster_can_be_right(command: DocCommand) -> None:
    for words in simple(command):
        assert words[0] in PROGRAMS
        if words[0] == "finetune":
            cli._parse(words[1:])  # leaves the process where a verb or flag does not exist
        for word in words:
            for name in re.findall(r"(?:^|[\s(])((?:examples|charts|docs)/[\w./-]+)", word):
                assert (ROOT / name).exists(), f"{name} does not exist"


@pytest.mark.parametrize("command", ON_A_CLUSTER, ids=str)
def test_conditions_and_fields_exist(command: DocCommand) -> None:
    if "finetunejob/" in command.text:
        for name in re.findall(r"--for[= ]condition=(\w+)", command.text):
            assert name in get_args(ConditionType)
    if "finetunejob" in command.text:
        fields = {info.alias or name for name, info in JobStatus.model_fields.items()}
        for name in re.findall(r"\{\.status\.(\w+)", command.text):
            assert name in fields


def test_the_quickstart_of_a_cluster_is_that_of_the_demo_but_for_its_output() -> None:
    def spec(path: str) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((ROOT / "examples" / path).read_text())
        return found

    here, there = spec("quickstart/quickstart.yaml"), spec("quickstart.yaml")
    assert there["spec"].pop("output") == {"uri": "pvc://output/quickstart"}
    assert there == here
    claims = yaml.safe_load_all((ROOT / "examples" / "claims.yaml").read_text())
    assert [claim["metadata"]["name"] for claim in claims] == ["models", "datasets", "output"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = match.group(1) or match.group(2)
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{target} does not exist"
