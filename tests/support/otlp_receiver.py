"""An OTLP receiver on a loopback port, in a thread: spans as they come, by OpenTelemetry's own protobuf."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from msgspec import Struct
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Got(Struct, frozen=True):
    """One span, as it came."""

    name: str
    trace_id: str
    parent_id: str
    begin: int  # nanoseconds since 1970
    end: int
    attributes: dict[str, Any]
    events: list[str]
    failed: bool
    service: dict[str, Any]


class Receiver:
    """``status``: what it answers. ``open``: it answers while this is set. ``bodies``: all that ever came."""

    def __init__(self) -> None:
        self.status = 200
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()  # somebody has brought something
        self.bodies: list[bytes] = []
        self._spans: queue.Queue[Got] = queue.Queue()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.asked.set()
                receiver.open.wait()
                if receiver.status == 200 and self.path == "/v1/traces":
                    receiver.take(body)
                reply = ExportTraceServiceResponse().SerializeToString()
                self.send_response(receiver.status if self.path == "/v1/traces" else 404)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, format: str, *args: Any) -> None:
                """It has nothing to say."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self._spans.put(
                        Got(
                            span.name, span.trace_id.hex(), span.parent_span_id.hex(),
                            span.start_time_unix_nano, span.end_time_unix_nano, _attributes(span.attributes),
                            [event.name for event in span.events], span.status.code == 2, service,
                        )
                    )  # fmt: skip

    def next(self) -> Got:
        return self._spans.get(timeout=60)

    @property
    def empty(self) -> bool:
        return self._spans.empty()


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)


@contextmanager
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    thread = threading.Thread(target=one.server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield one
    finally:
        one.open.set()
        one.server.shutdown()
        thread.join()
        one.server.server_close()
