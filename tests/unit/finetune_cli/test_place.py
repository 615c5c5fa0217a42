"""Which job a name means, and what is said where there is no way to a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from finetune_cli import main as cli
from finetune_cli import place
from finetune_cli.main import main

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: here
clusters: [{name: here, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: me, user: {token: t}}]
contexts:
- {name: here, context: {cluster: here, user: me}}
- {name: there, context: {cluster: here, user: me, namespace: team}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one job of this machine and a kubeconfig whose server does not answer."""
    job = tmp_path / "finetune-jobs" / "here-0123abcd"
    job.mkdir(parents=True)
    (job / "status.json").write_text('{"metadata": {}}')
    (tmp_path / "config").write_text(KUBECONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(list(words)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return printed.err.splitlines()


def test_a_folder_of_this_machine_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    """It is read, and cannot be understood: the cluster was not asked."""
    for job in ("here", "finetune-jobs/here-0123abcd"):
        lines = said(capsys, "watch", job)
        assert lines[0].endswith("[status-unreadable]")
        assert lines[0].startswith("finetune-jobs/here-0123abcd/status.json")


@pytest.mark.parametrize("words", [["watch", "here", "-n", "team"], ["watch", "there"]])
def test_flags_and_unknown_names_lead_to_the_cluster(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(capsys, *words)
    assert lines[0].startswith("error  the API server of context here does not answer: ")
    assert "Connection refused" in lines[0]
    assert lines[0].endswith("[cluster-unreachable]")


def test_kubectl_means_the_cluster(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/kubectl-finetune"])
    assert said(capsys, "watch", "here")[0].endswith("[cluster-unreachable]")
    assert said(capsys, "watch", "here", "--workspace", "finetune-jobs")[0].endswith(
        "[status-unreadable]"
    )
    with pytest.raises(SystemExit):
        cli.main(["watch", "--help"])
    assert capsys.readouterr().out.startswith("usage: kubectl finetune watch")


def test_flags_that_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "watch", "here", "-n", "team", "--workspace", "finetune-jobs")
    assert lines[0].endswith("[here-or-cluster]")
    assert said(capsys, "logs", "here", "--previous", "-f")[0].endswith("[flags-contradict]")


@pytest.mark.parametrize(
    ("file", "words", "line"),
    [
        (
            None,
            ["-n", "team"],
            "error  no cluster is configured: {}/config does not exist [no-kubeconfig]",
        ),
        (
            None,
            [],
            "error  no job bot under finetune-jobs on this machine, and no cluster is configured:"
            " {}/config does not exist [job-not-found]",
        ),
        (
            KUBECONFIG,
            ["--context", "moon"],
            "error  the kubeconfig has no context moon [context-not-found]",
        ),
    ],
)
def test_no_way_to_a_cluster(
    folder: Path,
    file: str | None,
    words: list[str],
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if file is None:
        (folder / "config").unlink()
    assert said(capsys, "watch", "bot", *words)[0] == line.format(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1\n- 2\n",
        "{",
        "a: b: c",
        "kind: Config\ncontexts: []\n",
        KUBECONFIG.replace("cluster: here, user: me}}", "cluster: gone, user: me}}", 1),
        KUBECONFIG.replace("user: {token: t}", "user: {client-certificate: /nowhere}"),
        KUBECONFIG.replace("user: {token: t}", "user: {exec: {command: /nowhere}}"),
        KUBECONFIG.replace("contexts:", "contexts: {}\nx:"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used(
    folder: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "config").write_text(text)
    lines = said(capsys, "watch", "bot", "-n", "team")
    assert len(lines) == 2
    codes = ("kubeconfig-unusable", "context-not-found", "context-not-chosen")
    assert lines[0].endswith(tuple(f"[{code}]" for code in (*codes, "cluster-unreachable")))
    assert lines[1].lstrip().startswith("fix: ")


def test_a_job_of_this_machine_has_its_log_in_a_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.find("here", folder / "finetune-jobs") is not None
    assert place.find("../here", folder) is None
    assert place.find("", folder / "finetune-jobs") is None
    assert said(capsys, "logs", "here")[0].endswith("[status-unreadable]")


def test_a_log_in_that_fails_is_told_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_in = (
        "user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: /nowhere,"
        " interactiveMode: Never}}"
    )
    (folder / "config").write_text(KUBECONFIG.replace("user: {token: t}", log_in))
    assert said(capsys, "watch", "bot", "-n", "team") == [
        f"error  {folder}/config cannot be used: the command that logs in failed: [Errno 2] No such"
        " file or directory: '/nowhere' [kubeconfig-unusable]",
        "       fix: see whether kubectl get finetunejobs works with it",
    ]
