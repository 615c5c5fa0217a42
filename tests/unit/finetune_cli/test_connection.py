"""What reaches an API server of a kubeconfig, and what is said where nothing can."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from urllib3.exceptions import InsecureRequestWarning

from finetune_cli.main import main

HEAD = "apiVersion: v1\nkind: Config\n"
CLUSTERS = 'clusters: [{{name: c, cluster: {{server: "{}"}}}}]\n'
USERS = "users: [{{name: u, user: {{{}}}}}]\n"
CONTEXTS = "contexts: [{name: good, context: {cluster: c, user: u, namespace: team}}]\n"


class Server(ThreadingHTTPServer):
    """Answers everything with one body and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.body = b'{"kind": "Status", "code": 404, "reason": "NotFound", "message": "no bot"}'
        self.code = 404
        self.tokens: list[str | None] = []
        self.paths: list[str] = []

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.tokens.append(self.headers.get("Authorization"))
        self.server.paths.append(self.path)
        self.send_response(self.server.code)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *args: object) -> None:
        del args


@pytest.fixture
def server() -> Iterator[Server]:
    """An API server that knows no job."""
    found = Server()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without jobs; the machine's own kubeconfig and proxies are out of sight."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(
    folder: Path, server: str, user: str = "token: x", more: str = "current-context: good\n"
) -> None:
    text = HEAD + CLUSTERS.format(server) + USERS.format(user) + CONTEXTS + more
    (folder / "config").write_text(text)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["watch", "bot", "--once", *words]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()


@pytest.mark.parametrize("user", ["tokenFile: {}/token", 'token: "abc\\n"', 'token: " abc "'])
def test_white_space_around_a_token_is_not_sent(
    folder: Path, server: Server, user: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "token").write_text("abc\n")
    write(folder, f"http://{server.place}", user.format(folder))
    assert said(capsys)[0].endswith("[job-not-found]")
    assert server.tokens == ["Bearer abc"]


@pytest.mark.parametrize("token", ["se\\ncret", "secret\\u20ac", "secret\\0"])
def test_a_token_that_cannot_be_sent_is_not_shown_either(
    folder: Path, server: Server, token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, f"http://{server.place}", f'token: "{token}"')
    assert said(capsys) == [
        "error  the token for context good cannot be sent: there is a line break or another"
        " character in it that no token has [token-malformed]",
        "       fix: write token or tokenFile of the kubeconfig anew: the token alone, on one line",
    ]
    assert server.tokens == []


def test_what_a_broken_kubeconfig_holds_is_not_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The token stands one level too high: the library's own words would repeat the entry."""
    write(folder, "http://127.0.0.1:9")
    text = (folder / "config").read_text()
    (folder / "config").write_text(text.replace("user: {token: x}", "token: secret"))
    lines = said(capsys)
    assert lines[0].endswith("Expected key user in an entry of it [kubeconfig-unusable]")
    assert "secret" not in "".join(lines)


@pytest.mark.parametrize("chosen", ["", 'current-context: ""\n', "current-context: deleted\n"])
def test_a_context_may_be_named_where_none_is_chosen(
    folder: Path, server: Server, chosen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, f"http://{server.place}", more=chosen)
    assert said(capsys, "--context", "good")[0] == (
        "error  no job bot in namespace team of context good [job-not-found]"
    )


@pytest.mark.parametrize(
    ("chosen", "lines"),
    [
        (
            'current-context: ""\n',
            [
                "error  the kubeconfig has no current-context [context-not-chosen]",
                "       fix: choose one with --context; contexts: good",
            ],
        ),
        (
            "current-context: deleted\n",
            [
                "error  the kubeconfig has no context deleted [context-not-found]",
                "       fix: contexts: good",
            ],
        ),
    ],
)
def test_no_context_is_chosen(
    folder: Path, chosen: str, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, "http://127.0.0.1:9", more=chosen)
    assert said(capsys, "-n", "team") == lines


def test_the_first_of_several_files_chooses_the_context(
    folder: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(folder, f"http://{server.place}")
    other = CONTEXTS.replace("good", "other").replace("team", "far")
    (folder / "second").write_text(HEAD + other + "current-context: other\n")
    monkeypatch.setenv("KUBECONFIG", f"{folder}/config:{folder}/second")
    assert "namespace team of context good" in said(capsys)[0]


def test_a_server_without_a_scheme(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, server.place)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert said(capsys)[0].endswith("[job-not-found]")
    assert server.tokens == ["Bearer x"]


def test_a_cluster_whose_certificate_is_not_looked_at_is_used_without_a_word(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, 'https://127.0.0.1:9", insecure-skip-tls-verify: true, x: "')
    with warnings.catch_warnings(record=True) as heard:
        said(capsys)
        warnings.warn("Unverified HTTPS request", InsecureRequestWarning, stacklevel=1)
    assert heard == []


def test_a_token_goes_over_tls_where_kubectl_has_it_so(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server here speaks no TLS: it never sees a request."""
    write(folder, server.place + '", insecure-skip-tls-verify: true, x: "')
    assert said(capsys)[0].endswith("[cluster-unreachable]")
    assert server.tokens == []


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "HTTP_PROXY"])
def test_a_proxy_that_is_no_url(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, ":::bad")
    write(folder, "https://10.0.0.1:6443" if name == "HTTPS_PROXY" else "http://10.0.0.1:6443")
    assert said(capsys)[0] == (
        "error  the proxy of this connection is no URL that can be used [proxy-unusable]"
    )


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "null",
        "7",
        "<html>log in</html>",
        '{"kind": "FineTuneJob"}',
        '{"metadata": [], "spec": 5, "status": []}',
        '{"metadata": {"name": "other", "uid": "u"}}',
    ],
)
def test_an_answer_that_no_api_server_gives(
    folder: Path, server: Server, body: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, f"http://{server.place}")
    server.code, server.body = 200, body.encode()
    lines = said(capsys)
    assert "does not answer: what answers is no API server: " in lines[0]
    assert lines[0].endswith("[cluster-unreachable]")
    assert main(["version"]) == 0


def test_a_job_with_sections_of_another_shape_is_read(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, f"http://{server.place}")
    head = {"name": "bot", "namespace": "team", "uid": "u", "generation": "x"}
    server.code, server.body = (
        200,
        json.dumps({"metadata": head, "spec": 5, "status": 7}).encode(),
    )
    assert main(["watch", "bot", "--once"]) == 0
    assert capsys.readouterr().out == "bot  namespace team of context good\n"
