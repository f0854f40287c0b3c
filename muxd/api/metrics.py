"""The door's own Prometheus series: what clients saw over HTTP. Sequences are counted by the engine.

One instance per registry, shared with ``muxd.engine.metrics.Metrics`` so that /metrics shows both.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from muxd.api.exposition import Exposition

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"})


class HttpMetrics:
    """Labels are route patterns, known methods, statuses and served model names: all bounded."""

    def __init__(self, registry: CollectorRegistry, *, vllm_names: bool = False):
        self._shown = Exposition(registry, vllm_names)
        self._requests = Counter(
            "muxd_http_requests",
            "HTTP requests answered, by route pattern",
            ("route", "method", "status"),
            registry=registry,
        )
        self._streams = Gauge("muxd_http_streams", "SSE streams open", ("model",), registry=registry)
        self._broken = Counter(
            "muxd_http_stream_errors",
            "SSE streams that ended with an error frame (their status was already 200)",
            ("model",),
            registry=registry,
        )
        self._gone = Counter(
            "muxd_http_disconnects",
            "Clients that went away before their answer was complete",
            ("model",),
            registry=registry,
        )
        self._keys = Counter(
            "muxd_http_key_requests", "HTTP requests by API key", ("key", "status"), registry=registry
        )
        self._tokens = Counter(
            "muxd_http_key_tokens",
            "Tokens of prompts and answers by API key",
            ("key", "kind"),
            registry=registry,
        )
        ProcessCollector(registry=registry)

    def answered(self, route: str, method: str, status: int) -> None:
        """One request is over. A method nobody knows counts as "other": clients choose the word."""
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()

    def used(self, key: str, status: int, prompt: int, completion: int) -> None:
        """By an API key's name."""
        self._keys.labels(key, str(status)).inc()
        self._tokens.labels(key, "prompt").inc(prompt)
        self._tokens.labels(key, "completion").inc(completion)

    def stream_opened(self, model: str) -> None:
        self._streams.labels(model).inc()

    def stream_closed(self, model: str) -> None:
        self._streams.labels(model).dec()

    def stream_broken(self, model: str) -> None:
        self._broken.labels(model).inc()

    def client_gone(self, model: str) -> None:
        self._gone.labels(model).inc()

    def render(self) -> tuple[bytes, str]:
        """All series of the registry in text format 0.0.4, with the content type to send."""
        return generate_latest(self._shown), CONTENT_TYPE_PLAIN_0_0_4
