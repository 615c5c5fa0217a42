"""Commands are read from pages as their reader would type them."""

from __future__ import annotations

import pytest

from harness.doc_commands import DocCommand, Malformed, commands_of, prints

PAGE = """\
# You want to see it

```console
$ not for a cluster
```

```console cluster
$ kubectl apply -f job.yaml
finetunejob.finetune.dev/bot created
$ kubectl patch finetunejob bot --type merge \\
    --patch '{"spec": {"suspend": true}}'
```

````text
```console cluster
$ shown, not meant
```
````

```console cluster
$ kubectl get ftjob bot   # short for finetunejob
NAME   PHASE
bot    Running
```
"""


def test_commands_stand_in_their_order_with_what_they_print() -> None:
    assert commands_of(PAGE, "a.md") == [
        DocCommand(
            "a.md",
            8,
            "kubectl apply -f job.yaml",
            ("finetunejob.finetune.dev/bot created",),
        ),
        DocCommand(
            "a.md",
            10,
            'kubectl patch finetunejob bot --type merge --patch \'{"spec": {"suspend": true}}\'',
        ),
        DocCommand(
            "a.md",
            21,
            "kubectl get ftjob bot   # short for finetunejob",
            ("NAME   PHASE", "bot    Running"),
        ),
    ]


def test_words_and_name() -> None:
    patch, get = commands_of(PAGE, "a.md")[1:]
    assert patch.words[-1] == '{"spec": {"suspend": true}}'
    assert get.words == ["kubectl", "get", "ftjob", "bot"]
    assert str(get).startswith("a.md:21: kubectl get")


def test_a_block_without_a_prompt_is_commands_alone() -> None:
    block = "# install it\nhelm install it \\\n  --set a=b\n\nkubectl get pods\n"
    assert commands_of(f"```console cluster\n{block}```\n", "a.md") == [
        DocCommand("a.md", 3, "helm install it --set a=b"),
        DocCommand("a.md", 6, "kubectl get pods"),
    ]


@pytest.mark.parametrize(
    "block",
    ["", "output\n$ ls\n", "$ kubectl get \\\n", "$ \n", "# nothing\n"],
)
def test_blocks_that_cannot_be_run(block: str) -> None:
    with pytest.raises(Malformed):
        commands_of(f"```console cluster\n{block}```\n", "a.md")


def test_a_block_in_a_list_is_none_the_less_a_block() -> None:
    block = (
        "- so:\n\n  ```console cluster\n  $ kubectl get \\\n      ftjob\n  bot  Running\n  ```\n"
    )
    assert commands_of(block, "a.md") == [
        DocCommand("a.md", 4, "kubectl get ftjob", ("bot  Running",))
    ]


def test_a_block_without_an_end() -> None:
    with pytest.raises(Malformed, match="line 2"):
        commands_of("text\n```console cluster\n$ ls\n")


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ((), "anything\n", True),
        (("a  b",), "a b\n", True),
        (("a  b",), "a   b\n", True),
        (("a b",), "a c\n", False),
        (("a b",), "a b\nmore\n", False),
        (("a ... d",), "a b c d\n", True),
        (("bot ...%",), "bot 45%\n", True),
        (("a", "...", "d"), "a\nb\nc\nd\n", True),
        (("a", "...", "d"), "a\nd\n", True),
        (("a", "..."), "b\n", False),
        (("x.y",), "xzy\n", False),
        (("a",), "", False),
    ],
)
def test_what_a_page_shows(shown: tuple[str, ...], printed: str, same: bool) -> None:
    assert prints(shown, printed) is same
