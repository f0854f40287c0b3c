"""One OpenTelemetry span for each request to a model: which, how long it waited, how it ended.

By the conventions for generative AI (https://opentelemetry.io/docs/specs/semconv/gen-ai/), times by vLLM's
names; never a word of a prompt or an answer. OpenTelemetry is the extra ``otel``: this file is imported where
traces are wanted, and nowhere else. ``docs/operations.md`` has the table of attributes.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, Counter

from muxd.api.replies import VERSION
from muxd.api.trace import Trace

_log = logging.getLogger("muxd.api")

MOST = 4096  # spans that wait to be exported; one more is dropped, and counted
_BATCH = 512  # in one export
_PERIOD = 2000  # milliseconds from one export to the next, where no batch is full
_LAST = 2.0  # seconds for the last export, when muxd ends
# By the pattern of their route; other requests ask no model and have no span.
OPERATIONS = {
    "/v1/chat/completions": "chat", "/v1/responses": "chat", "/v1/messages": "chat", "/api/chat": "chat",
    "/v1/completions": "text_completion", "/api/generate": "text_completion",
    "/v1/embeddings": "embeddings", "/api/embed": "embeddings", "/api/embeddings": "embeddings",
    "/v1/rerank": "rerank", "/v1/score": "score",
}  # fmt: skip

Attributes = dict[str, str | int | float | Sequence[str]]


class Spans:
    """Made as requests end, and exported by a thread of its own: the loop never waits for a receiver.

    ``url`` as ``server.traces``: of a receiver that speaks OTLP over HTTP, with its path or without.
    OpenTelemetry's own variables hold: OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME.
    """

    def __init__(self, url: str, registry: CollectorRegistry):
        self._ends = Counter(
            "muxd_trace_spans",
            "Spans of requests by what became of them: exported, failed (the receiver did not take them) or "
            "dropped (too many waited)",
            ("outcome",),
            registry=registry,
        )
        self._exporter = _Counted(url, self._ends)
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(self._exporter, MOST, _PERIOD, _BATCH, meter_provider=None)
        )
        self._tracer = self._provider.get_tracer("muxd", VERSION)
        self._parents = TraceContextTextMapPropagator()
        self._handed = 0  # spans, to the processor

    def ended(
        self, record: Trace, headers: Mapping[str, str], *, route: str, status: int, now: float
    ) -> None:
        """A request is over, ``now`` by the door's clock; ``headers`` may say whose part it is."""
        if (operation := OPERATIONS.get(route)) is None:
            return
        if self._handed - self._exporter.taken >= MOST:
            self._ends.labels("dropped").inc()
            return
        end = time.time_ns()
        span = self._tracer.start_span(
            f"{operation} {record.model}".rstrip(),
            self._parents.extract(headers),
            SpanKind.SERVER,
            _attributes(record, operation, route, status),
            start_time=end - _nanoseconds(now - record.started),
        )
        if not span.is_recording():  # whoever asked does not want it traced
            return
        if record.first_token is not None:
            span.add_event("first token", timestamp=end - _nanoseconds(now - record.first_token))
        if record.outcome == "failed":
            span.set_status(StatusCode.ERROR)
        self._handed += 1
        span.end(end)

    def close(self) -> None:
        """Export what waits. Blocks, for two seconds at most; what is left then is lost, and said."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(_LAST)
        if left := self._handed - self._exporter.taken:
            _log.warning("traces: %d spans were not exported in time", left)


class _Counted(SpanExporter):
    """OpenTelemetry's own, by the processor's thread. ``taken``: spans that it has done with. A receiver that
    fails is one line of the log, and one when it is back."""

    def __init__(self, url: str, ends: Counter):
        logging.getLogger("opentelemetry.exporter").setLevel(
            logging.CRITICAL
        )  # says all of it again and again
        self._inner = OTLPSpanExporter(endpoint=_with_path(url))
        self._url, self._ends = url, ends
        self._works = True
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            works = result is SpanExportResult.SUCCESS
            self._ends.labels("exported" if works else "failed").inc(len(spans))
            self.taken += len(spans)
            if works != self._works:
                told = "takes spans again" if works else "does not take spans; they are lost until it does"
                _log.warning("traces: %s %s", self._url, told)
            self._works = works
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


def _attributes(record: Trace, operation: str, route: str, status: int) -> Attributes:
    found: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "muxd",
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "http.route": route,
        "http.response.status_code": status,
        "muxd.request.id": record.id,
        "muxd.outcome": record.outcome or "",
    }
    if record.model:
        found |= {"gen_ai.request.model": record.model, "gen_ai.response.model": record.model}
    if record.finish:
        found["gen_ai.response.finish_reasons"] = [record.finish]
    if record.queued is not None:
        found["gen_ai.latency.time_in_queue"] = record.queued
    if record.first_token is not None:
        found["gen_ai.latency.time_to_first_token"] = record.first_token - record.started
    if record.key is not None:
        found["muxd.key"] = record.key.name
    if status >= 400 or record.outcome == "failed":
        found["error.type"] = str(status) if status >= 400 else "failed"
    return found


def _resource() -> Resource:
    """``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` go first."""
    own: dict[str, Any] = {"service.version": VERSION}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        own["service.name"] = "muxd"
    return Resource.create(own)


def _with_path(url: str) -> str:
    """OTLP's own, where there is none."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path="/v1/traces")) if parts.path in ("", "/") else url


def _nanoseconds(seconds: float) -> int:
    return int(1e9 * seconds)
