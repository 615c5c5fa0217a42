"""``/progress`` and ``/metrics`` of rank 0, served by a thread."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_api.reports import Progress

LIMIT = 64 * 1024
"""Bytes of an answer."""
_GAUGES = {
    "finetune_step": ("Optimizer steps done", "step"),
    "finetune_steps_planned": ("Optimizer steps of the job", "total_steps"),
    "finetune_epoch": ("Passes over the data", "epoch"),
    "finetune_loss": ("Training loss at the last log", "loss"),
    "finetune_learning_rate": ("Learning rate at the last log", "learning_rate"),
    "finetune_gradient_norm": ("Gradient norm before clipping at the last log", "gradient_norm"),
    "finetune_tokens_per_second": ("Input tokens a second over all ranks", "tokens_per_second"),
    "finetune_eta_seconds": ("Estimated seconds to the last step", "eta_seconds"),
    "finetune_peak_memory_bytes": ("Largest memory of rank 0", "peak_memory_bytes"),
}


class ProgressCollector(Collector):
    """The newest progress as Prometheus gauges."""

    def __init__(self, current: Callable[[], Progress]) -> None:
        """``current`` returns the newest progress."""
        self._current = current

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield what is known; what is not, is left out."""
        progress = self._current()
        for name, (text, field) in _GAUGES.items():
            value = getattr(progress, field)
            if value is not None:
                yield GaugeMetricFamily(name, text, value=float(value))
        evaluation = GaugeMetricFamily("finetune_evaluation", "Last evaluation", labels=["metric"])
        for metric, value in progress.evaluation.items():
            evaluation.add_metric([metric], value)
        yield evaluation
        seconds = GaugeMetricFamily(
            "finetune_seconds", "Seconds of this claim, by what they were for", labels=["kind"]
        )
        for kind, value in progress.goodput.to_json().items():
            seconds.add_metric([kind], value)
        yield seconds


class Endpoint:
    """An HTTP server that reads and never writes."""

    def __init__(self, host: str, port: int, current: Callable[[], Progress]) -> None:
        """Bind; port 0 asks for a free one, no host for every address.

        Raises ``OSError`` when the port is taken.
        """
        registry = CollectorRegistry()
        registry.register(ProgressCollector(current))
        answers: dict[str, tuple[str, Callable[[], bytes]]] = {
            "/progress": (
                "application/json",
                lambda: json.dumps(current().to_json()).encode(),
            ),
            "/metrics": ("text/plain; version=0.0.4", lambda: generate_latest(registry)),
        }

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                kind, make = answers.get(self.path.partition("?")[0], ("", bytes))
                body = make()
                if not kind or len(body) > LIMIT:
                    self.send_error(404 if not kind else 500)
                    return
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Say nothing: it is asked every few seconds."""

        self._server = _listening(host, port, Handler)
        threading.Thread(
            target=self._server.serve_forever, name="progress-endpoint", daemon=True
        ).start()

    @property
    def port(self) -> int:
        """The port that is bound."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Serve no longer."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without asking the DNS for this machine's name, which no answer has."""
        if self.address_family == socket.AF_INET6:  # and IPv4, whatever the machine's default is
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "", int(self.server_address[1])


class _BothFamilies(_Server):
    address_family = socket.AF_INET6


def _listening(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> _Server:
    """Return the server: without a host at every address, of IPv6 too where the machine has it."""
    if host:
        return _Server((host, port), handler)
    try:
        return _BothFamilies(("::", port), handler)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _Server(("", port), handler)
