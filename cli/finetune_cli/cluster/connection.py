"""The connection to a cluster: one client, and every refusal as a typed error."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from finetune_api.problem import Problem, Refused
from finetune_cli.cluster import kubeconfig

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
_POOL = 256
"""Connections that are kept: the log of each pod holds one."""


class ApiRefusal(Exception):
    """An answer of the API server that is no success."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        """Hold the HTTP code, the machine's reason and the words for a person."""
        self.code = code
        self.reason = reason
        self.message = message
        super().__init__(f"{code} {reason}: {message}")


class NoAnswer(Exception):
    """The API server did not answer, or stopped in the middle of an answer."""


class Cluster(Protocol):
    """What is needed of a connection."""

    @property
    def namespace(self) -> str:
        """Where jobs are looked for."""
        ...

    @property
    def place(self) -> str:
        """The cluster, in words."""
        ...

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Read JSON; raises ``ApiRefusal`` and ``NoAnswer``."""
        ...

    def merge(self, path: str, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Change an object with a merge patch; raises as ``get`` does."""
        ...

    def lines(
        self, path: str, query: Mapping[str, str] | None = None, silence: float | None = None
    ) -> Iterator[str]:
        """Open a stream and return its lines as they come; raises as ``get`` does.

        ``silence``: seconds after which a stream without a word counts as broken.
        """
        ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which cluster and namespace are meant."""
    group = parser.add_argument_group("in a cluster")
    group.add_argument("-n", "--namespace", metavar="NAME", help="default: that of the context")
    group.add_argument("--context", metavar="NAME", help="context of the kubeconfig")
    group.add_argument(
        "--kubeconfig", metavar="FILE", help="default: $KUBECONFIG, else ~/.kube/config"
    )


def asked_for(arguments: argparse.Namespace) -> bool:
    """Tell whether a flag says that a job in a cluster is meant."""
    return any((arguments.namespace, arguments.context, arguments.kubeconfig))


def options(arguments: argparse.Namespace) -> list[str]:
    """Return kubectl's options for the cluster that the arguments name."""
    named = (("--context", arguments.context), ("--kubeconfig", arguments.kubeconfig))
    return [word for flag, value in named if value for word in (flag, str(value))]


def connect(arguments: argparse.Namespace) -> Connection:
    """Return a connection; nothing is asked yet.

    Raises ``Refused`` where there is no kubeconfig or it cannot be used.
    """
    from kubernetes.client import ApiClient, Configuration
    from urllib3 import disable_warnings
    from urllib3.exceptions import HTTPError, InsecureRequestWarning

    # Who writes insecure-skip-tls-verify knows it; a warning would break into a live table.
    disable_warnings(InsecureRequestWarning)
    configuration = Configuration()
    named = arguments.kubeconfig or os.environ.get("KUBECONFIG")
    files = named or str(Path("~/.kube/config").expanduser())
    there = any(Path(file).expanduser().is_file() for file in files.split(os.pathsep) if file)
    if not there and not named and os.environ.get("KUBERNETES_SERVICE_HOST"):
        namespace = kubeconfig.of_this_pod(configuration)
        place = "the cluster of this pod"
    elif not there:
        raise Refused(
            Problem(
                code="no-kubeconfig",
                message=f"no cluster is configured: {files} does not exist",
                fix="name the kubeconfig with --kubeconfig FILE or KUBECONFIG",
            )
        )
    else:
        namespace, context = kubeconfig.of_file(files, arguments.context, configuration)
        place = f"context {context}"
    configuration.connection_pool_maxsize = _POOL
    try:
        client = ApiClient(configuration)
    except (HTTPError, ValueError) as error:
        raise Refused(
            Problem(
                code="proxy-unusable",
                message="the proxy of this connection is no URL that can be used",
                fix="mend proxy-url of the kubeconfig, else HTTPS_PROXY or HTTP_PROXY:"
                " http://name:port",
            )
        ) from error
    return Connection(client, _namespace(arguments.namespace or namespace), place)


def _namespace(name: str) -> str:
    """Return a namespace; raises ``Refused`` for one that cannot stand in a path of the API."""
    if name.isascii() and name.isprintable():
        return name
    raise Refused(
        Problem(
            code="namespace-malformed",
            message=f"no namespace can be called {name}",
            fix="name the namespace of the job with -n: small letters, digits and hyphens",
        )
    )


@dataclass(frozen=True)
class Connection:
    """A client with the user's credentials. May be used by several threads."""

    client: Any
    namespace: str
    place: str

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Read JSON."""
        return self._json(self._send("GET", path, query, None, ANSWER_SECONDS))

    def merge(self, path: str, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Change an object with a merge patch."""
        body = json.dumps(patch).encode()
        query = {"fieldManager": "finetune-cli", "fieldValidation": "Strict"}
        return self._json(self._send("PATCH", path, query, body, ANSWER_SECONDS))

    def lines(
        self, path: str, query: Mapping[str, str] | None = None, silence: float | None = None
    ) -> Iterator[str]:
        """Open a stream; return its lines as they come."""
        return _lines(self._send("GET", path, query, None, silence))

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        seconds: float | None,
    ) -> Any:
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError

        headers = {**self.client.default_headers, "Accept": "application/json, */*"}
        headers["User-Agent"] = "finetune"
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        self.client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        _check_token(headers, self.place)
        url = self.client.configuration.host.rstrip("/") + path
        url += f"?{urlencode(query)}" if query else ""
        try:
            answer = self.client.rest_client.pool_manager.request(
                method,
                url,
                body=body,
                headers=headers,
                timeout=Timeout(connect=CONNECT_SECONDS, read=seconds),
                preload_content=False,
                retries=False,
            )
            if answer.status < 400:
                return answer
            text = answer.read().decode(errors="replace")
            answer.release_conn()
        except (HTTPError, OSError) as error:
            raise NoAnswer(_words(error)) from error
        raise _refusal(answer.status, text)

    def _json(self, answer: Any) -> dict[str, Any]:
        from urllib3.exceptions import HTTPError

        try:
            found = json.loads(answer.read())
        except (HTTPError, OSError) as error:
            raise NoAnswer(_words(error)) from error
        except ValueError as error:
            raise NoAnswer(f"what answers is no API server: {error}") from error
        finally:
            answer.release_conn()
        if not isinstance(found, dict):
            raise NoAnswer("what answers is no API server: its answer is no object")
        return found


def _check_token(headers: dict[str, str], place: str) -> None:
    """Remove the white space around a token: files of tokens end with a line feed.

    Raises ``Refused``, without the token, where it holds what no header can.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if not scheme:
        return
    token = token.strip()
    if not token.isascii() or not token.isprintable():
        raise Refused(
            Problem(
                code="token-malformed",
                message=f"the token for {place} cannot be sent: there is a line break or another"
                " character in it that no token has",
                fix="write token or tokenFile of the kubeconfig anew: the token alone, on one line",
            )
        )
    headers["authorization"] = f"{scheme} {token}"


def _lines(answer: Any) -> Iterator[str]:
    from urllib3.exceptions import HTTPError

    rest = b""
    try:
        for chunk in answer.stream(65536):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace")
        if rest:
            yield rest.decode(errors="replace")
    except (HTTPError, OSError) as error:
        raise NoAnswer(_words(error)) from error
    finally:
        answer.close()
        answer.release_conn()


def _refusal(code: int, text: str) -> ApiRefusal:
    try:
        found = json.loads(text)
    except ValueError:
        found = {}
    if not isinstance(found, dict):
        found = {}
    message = str(found.get("message") or text or "no reason was given")
    return ApiRefusal(code, str(found.get("reason") or ""), " ".join(message.split())[:512])


def _words(error: BaseException) -> str:
    """Return what went wrong without the library's own names for its parts."""
    text = " ".join(str(error).split())
    return text.rpartition("): ")[2].removeprefix("Failed to establish a new connection: ")[:300]


def unreachable(error: NoAnswer, cluster: Cluster) -> Refused:
    """Return what a user reads when the API server does not answer at all."""
    return Refused(
        Problem(
            code="cluster-unreachable",
            message=f"the API server of {cluster.place} does not answer: {error}",
            fix="see whether kubectl version reaches it",
        )
    )


def refused(error: ApiRefusal, cluster: Cluster, what: str) -> Refused:
    """Return what a user reads when the API server refuses to ``what`` (``read pods``)."""
    if error.code == 401:
        problem = Problem(
            code="not-logged-in",
            message=f"{cluster.place} does not accept the credentials of the kubeconfig",
            fix="log in to the cluster again",
        )
    elif error.code == 403:
        problem = Problem(
            code="not-allowed",
            message=f"you may not {what} in namespace {cluster.namespace}: {error.message}",
            fix="ask for the role that the chart aggregates to view (to look) or to edit (to"
            " change), or name your own namespace with -n",
        )
    else:
        problem = Problem(
            code="cluster-refused",
            message=f"cannot {what}: {error.code} {error.message}",
            fix="the words are the API server's",
        )
    return Refused(problem)
