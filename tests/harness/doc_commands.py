"""The commands that pages tell their readers to type on a cluster.

They stand in fenced blocks that begin with ``console cluster`` behind the back-ticks::

    $ kubectl apply -f job.yaml
    finetunejob.finetune.dev/bot created

A line after ``$ `` is a command, one that ends with a backslash goes on in the next line, and what
does not begin with ``$ `` is what the command prints. In a shown line ``...`` stands for anything, a
line of ``...`` alone for any number of lines, and runs of spaces count as one. A block without a
``$ `` is commands alone, to be copied as they stand.

Each command runs by bash in the root of the checkout, one after the other, each to its end and to exit
status 0, with kubectl, helm and ``.venv/bin`` on the ``PATH`` and ``KUBECONFIG``, ``REGISTRY`` and
``VERSION`` in the environment (images: ``$REGISTRY/finetune-operator:$VERSION`` and
``finetune-trainer``). A page begins with what it says it needs, and nothing else of another page: an
output that a job left before would be refused.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`]*)$")
_PROMPT = "$ "


class Malformed(Exception):
    """A block that cannot be run as it stands."""


@dataclass(frozen=True)
class DocCommand:
    """One command of a page, and what the page says that it prints."""

    page: str
    line: int
    """Of the page, from 1."""
    text: str
    """As bash takes it: continued lines are joined."""
    shown: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """The words of a plain command; a pipe or a redirection stays a word."""
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        """For the name of a test."""
        return f"{self.page}:{self.line}: {self.text}"


def commands_of(text: str, page: str = "") -> list[DocCommand]:
    """Return the commands of a page in their order; raises ``Malformed``."""
    found: list[DocCommand] = []
    for number, lines in _blocks(text):
        found += _commands(lines, page, number)
    return found


def commands_in(path: Path, root: Path) -> list[DocCommand]:
    """Return the commands of a file, named by its path below the root."""
    return commands_of(path.read_text(encoding="utf-8"), str(path.relative_to(root)))


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line, and the lines, of each block for a cluster."""
    inside: str | None = None
    wanted, first, indent, lines = False, 0, 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if inside is None and fence:
            inside, wanted = fence["ticks"], fence["info"].split() == ["console", "cluster"]
            first, indent, lines = number + 1, len(fence["indent"]), []
        elif inside is not None and fence and fence["ticks"] == inside and not fence["info"]:
            if wanted:
                yield first, lines
            inside = None
        elif inside is not None:
            lines.append(line[indent:] if not line[:indent].strip() else line)
    if inside is not None:
        raise Malformed(f"line {first - 1}: the block has no end")


def _commands(lines: Sequence[str], page: str, first: int) -> Iterator[DocCommand]:
    at, text, shown, goes_on = 0, "", list[str](), False
    prompt = _PROMPT if any(line.startswith(_PROMPT) for line in lines) else ""
    for number, line in enumerate(lines, first):
        if goes_on:
            text = text[:-1].rstrip() + " " + line.strip()
        elif not prompt and (not line.strip() or line.startswith("#")):
            continue
        elif line.startswith(prompt):
            if text:
                yield DocCommand(page, at, text, tuple(shown))
            at, text, shown = number, line.removeprefix(prompt).rstrip(), []
        elif not text:
            raise Malformed(f"{page}:{number}: output before the first command: {line}")
        else:
            shown.append(line.rstrip())
            continue
        goes_on = text.endswith("\\")
    if goes_on or not text:
        raise Malformed(f"{page}:{first}: the block ends in the middle of a command")
    yield DocCommand(page, at, text, tuple(shown))


def prints(shown: Sequence[str], printed: str) -> bool:
    """Tell whether output is what a page shows; a page that shows nothing promises nothing."""
    if not shown:
        return True
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "..." else _line(line) + r"\n" for line in shown
    )
    lines = "".join(f"{' '.join(line.split())}\n" for line in printed.splitlines())
    return re.fullmatch(pattern, lines) is not None


def _line(line: str) -> str:
    return ".*?".join(re.escape(part) for part in " ".join(line.split()).split("..."))
