"""YAML as kubectl reads it, with places."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.problem import Refused
from finetune_cli import yaml_file
from finetune_cli.yaml_scalar import plain

# Written down from what kubectl 1.32 prints for each (`kubectl label --local -o json`).
SCALARS: dict[str, Any] = {
    "2e-4": 0.0002,
    "1e3": 1000,
    "8.0": 8,
    "12e03": 12000,
    "0.1e-2": 0.001,
    "1e-7": 1e-7,
    "1e21": 1e21,
    ".5": 0.5,
    "-.5": -0.5,
    "5.": 5,
    "+5": 5,
    "-0.0": 0,
    "017": 15,
    "0o17": 15,
    "0x1F": 31,
    "0b101": 5,
    "08": 8,
    "1_000": 1000,
    "1__0": 10,
    "1_0.5_0": 10.5,
    "_1": "_1",
    "1e": "1e",
    "1.5.2": "1.5.2",
    ".5.": ".5.",
    "0x": "0x",
    "1:30": "1:30",
    "2024-01-01": "2024-01-01",
    "yes": True,
    "y": True,
    "on": True,
    "TRUE": True,
    "tRue": "tRue",
    "Off": False,
    "n": False,
    "~": None,
    "NULL": None,
    "'yes'": "yes",
    '"8"': "8",
    "!!str 5": "5",
    '!!int "7"': 7,
    "!!float 3": 3,
    "!!binary aGk=": "hi",
    "123456789012345678901234567890": 1.2345678901234568e29,
}


def read(tmp_path: Path, text: str) -> list[yaml_file.YamlDocument]:
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    return yaml_file.read(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("text", SCALARS)
def test_a_scalar(text: str, tmp_path: Path) -> None:
    [document] = read(tmp_path, f"a: {text}\n")
    found = document.data["a"]
    assert found == SCALARS[text]
    assert type(found) is type(SCALARS[text])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_a_whole_file_as_kubectl_reads_it(tmp_path: Path) -> None:
    lines = [f"  k{at}: {text}" for at, text in enumerate(SCALARS)]
    lines += [
        "  8: eight",
        "  true: key",
        "  1.5: float",
        "  base: &base {a: 1, b: 2}",
        "  over: {<<: *base, b: 3}",
        "  several: {<<: [*base, {c: 4, a: 9}]}",
        "  same: *base",
        "  text: |",
        "    two",
        "    lines",
        "  folded: >-",
        "    one",
        "    line",
        "  list:",
        "  - 1",
        "  - [x, {y: z}]",
    ]
    frame = "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: x}\nspec:\n"
    [document] = read(tmp_path, frame + "\n".join(lines) + "\n")
    command = ["kubectl", "label", "--local", "-f", str(tmp_path / "x.yaml"), "a=b", "-o", "json"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert document.data["spec"] == json.loads(said)["spec"]


@given(st.text(alphabet="0123456789+-._eExXoObBaAfFyYnN~<", max_size=8))
def test_no_text_breaks_the_reading_of_scalars(text: str) -> None:
    assert isinstance(plain(text), str | int | float | bool | None)


@given(st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_of_json_come_back(number: float) -> None:
    assert plain(json.dumps(number)) == number


def test_places(tmp_path: Path) -> None:
    [one, two] = read(
        tmp_path,
        """\
# a comment
spec:
  model: {uri: a, revision: b}
  train:
    - uri: c
    - {uri: d}
  nodeSelector:
    nvidia.com/gpu: e
---
kind: x
""",
    )
    assert one.place("spec") == (2, 1)
    assert one.place("spec.model") == (3, 3)
    assert one.place("spec.model.revision") == (3, 19)
    assert one.place("spec.train[0]") == (5, 7)
    assert one.place("spec.train[1].uri") == (6, 8)
    assert one.place("spec.nodeSelector[nvidia.com/gpu]") == (8, 5)
    # what is absent is shown where it would have to be added
    assert one.place("spec.train[1].format") == (6, 7)
    assert one.place("spec.training.epochs") == (2, 1)
    assert one.place("metadata.name") == (2, 1)
    assert one.place("") == (2, 1)
    assert two.place("kind") == (10, 1)


WRONG: dict[str, tuple[str, str, int, int]] = {
    "a: 1\nb: 2\na: 3\n": ("duplicate-key", "a is written twice, first on line 1", 3, 1),
    "a: {b: 1, b: 2}\n": ("duplicate-key", "a.b is written twice, first on line 1", 1, 11),
    "a:\n\tb: 1\n": ("yaml-tab", "a tab; YAML is indented with spaces", 2, 1),
    "a: b: c\n": ("yaml-syntax", "not valid YAML: mapping values are not allowed here", 1, 5),
    "a: *b\n": ("yaml-alias", "the alias *b names nothing that stands above", 1, 4),
    "a: &b [*b]\n": ("yaml-alias", "the alias *b names nothing that stands above", 1, 8),
    "<<: 3\n": ("yaml-alias", "<< needs a mapping", 1, 1),
    "a: !include x\n": ("yaml-tag", "the tag !include means nothing to Kubernetes", 1, 4),
    "a: !!int x\n": ("yaml-tag", "'x' is not what !!int says", 1, 4),
    "a: .inf\n": ("not-finite", ".inf is no number in JSON", 1, 4),
    "a: -.INF\n": ("not-finite", "-.INF is no number in JSON", 1, 4),
    "a: .nan\n": ("not-finite", ".nan is no number in JSON", 1, 4),
    "? [a]\n: b\n": ("yaml-key", "a name must be text", 1, 3),
    "~: b\n": ("yaml-key", "a name must be text", 1, 1),
    "a: \x01\n": ("yaml-syntax", "a control character, which YAML does not allow", 1, 4),
    "a: 'x\n": (
        "yaml-syntax",
        "not valid YAML: while scanning a quoted scalar found unexpected end of stream",
        2,
        1,
    ),
    "[" * 100: ("too-deep", "nested deeper than 64 levels", 1, 66),
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_has_a_place(text: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        read(tmp_path, text)
    [problem] = caught.value.problems
    assert (problem.code, problem.message, problem.line, problem.column) == WRONG[text]
    assert problem.fix


def test_aliases_of_aliases_do_not_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for at in range(1, 12):
        refs = ", ".join([f"*a{at - 1}"] * 10)
        lines.append(f"a{at}: &a{at} [{refs}]")
    with pytest.raises(Refused) as caught:
        read(tmp_path, "\n".join(lines))
    assert caught.value.problems[0].code == "file-too-large"


def test_json_with_tabs(tmp_path: Path) -> None:
    [document] = read(tmp_path, '{\n\t"kind": "x",\n\t"list": [1,\t2]\n}\n')
    assert document.data == {"kind": "x", "list": [1, 2]}
    assert document.place("list") == (3, 2)


def test_empty_documents_are_left_out(tmp_path: Path) -> None:
    found = read(tmp_path, "---\n---\na: 1\n---\n# nothing\n---\nb: 2\n...\n")
    assert [document.data for document in found] == [{"a": 1}, {"b": 2}]
    assert [document.start for document in found] == [(3, 1), (7, 1)]


def test_a_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: yes\r\n")
    [document] = yaml_file.read(str(tmp_path / "x.yaml"))
    assert document.data == {"a": 1, "b": True}
    assert document.place("b") == (2, 1)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"#" * (3 * 1024 * 1024 + 1))
    with pytest.raises(Refused) as caught:
        yaml_file.read(str(tmp_path / "x.yaml"))
    assert caught.value.problems[0].message == "the file is larger than 3 MiB"


@given(st.text(alphabet=" \n\t-:[]{}&*!|>'\"%@`#,?ab1<", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        list(yaml_file.parse(text, "x.yaml"))
    except Refused as refused:
        assert refused.problems[0].line
