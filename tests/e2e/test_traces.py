"""What an OpenTelemetry receiver is told of requests to a real daemon, and that nobody waits for it."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.churn_books import series
from support.live import LiveDaemon, live
from support.tiny import tiny_served

pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel: pip install 'muxd[otel]'")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra otel")

from prometheus_client import CollectorRegistry
from support.otlp_receiver import Got, Receiver, receiver

from muxd.api.routes import ROUTES
from muxd.api.spans import MOST, OPERATIONS, Spans
from muxd.api.trace import Trace

SECRET = "sesame"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def config(folder: Path, traces: str) -> str:
    tiny_served(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATE}))
    return (
        f'[server]\ntraces = "{traces}"\n[pool]\nbytes = "4M"\n'
        f'[[model]]\nname = "m"\npath = "{folder}"\ndtype = "float32"\npooling = "mean"\n'
    )


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveDaemon, Receiver]]:
    folder = tmp_path_factory.mktemp("traced")
    with receiver() as one, live(config(folder / "m", one.url), folder) as daemon:
        yield daemon, one


def ask(daemon: LiveDaemon, path: str, body: dict[str, Any], **headers: str) -> tuple[int, bytes]:
    async def asked() -> tuple[int, bytes]:
        async with (
            aiohttp.ClientSession(daemon.url) as session,
            session.post(path, json={"model": "m", **body}, headers=headers) as answer,
        ):
            return answer.status, await answer.read()

    return asyncio.run(asked())


def traced_one(traced: tuple[LiveDaemon, Receiver], path: str, body: dict[str, Any], **headers: str) -> Got:
    daemon, one = traced
    ask(daemon, path, body, **headers)
    return one.next()


def test_a_stream_is_a_span_from_its_arrival_to_its_end(traced: tuple[LiveDaemon, Receiver]) -> None:
    before = time.time_ns()
    body = {
        "messages": [{"role": "user", "content": SECRET}],
        "max_tokens": 5,
        "ignore_eos": True,
        "stream": True,
    }
    span = traced_one(traced, "/v1/chat/completions", body, **{"x-request-id": "mine"})
    after = time.time_ns()
    assert span.name == "chat m"
    assert before <= span.begin < span.end <= after
    assert span.events == ["first token"]
    found = span.attributes
    queued, first = (found.pop(f"gen_ai.latency.{name}") for name in ("time_in_queue", "time_to_first_token"))
    assert 0 <= queued < first < (after - before) / 1e9
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "muxd",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": len(SECRET),
        "gen_ai.usage.output_tokens": 5,
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "muxd.request.id": "mine",
        "muxd.outcome": "served",
    }
    assert span.service["service.name"] == "muxd"
    assert (span.parent_id, span.failed) == ("", False)


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/completions", {"prompt": SECRET, "max_tokens": 2}, "text_completion m"),
        ("/v1/messages", {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 2}, "chat m"),
        ("/api/generate", {"prompt": SECRET, "options": {"num_predict": 2}}, "text_completion m"),
        ("/v1/embeddings", {"input": [SECRET, "b"]}, "embeddings m"),
    ],
)
def test_each_door_has_its_operation(
    path: str, body: dict[str, Any], name: str, traced: tuple[LiveDaemon, Receiver]
) -> None:
    span = traced_one(traced, path, body)
    assert (span.name, span.attributes["http.route"]) == (name, path)
    assert span.attributes["gen_ai.latency.time_in_queue"] >= 0
    assert span.attributes["gen_ai.usage.input_tokens"] >= len(SECRET)


def test_a_span_is_part_of_the_clients_trace(traced: tuple[LiveDaemon, Receiver]) -> None:
    span = traced_one(traced, "/v1/completions", {"prompt": "a", "max_tokens": 1}, traceparent=PARENT)
    assert (span.trace_id, span.parent_id) == tuple(PARENT.split("-")[1:3])


def test_who_does_not_want_to_be_traced_is_not(traced: tuple[LiveDaemon, Receiver]) -> None:
    daemon, one = traced
    ask(daemon, "/v1/completions", {"prompt": "a", "max_tokens": 1}, traceparent=PARENT[:-1] + "0")
    assert traced_one(traced, "/v1/completions", {"prompt": "a", "max_tokens": 2}).parent_id == ""
    assert one.empty


def test_a_refusal_says_what_it_was(traced: tuple[LiveDaemon, Receiver]) -> None:
    span = traced_one(traced, "/v1/completions", {"prompt": "a", "temperature": 99})
    assert (span.attributes["muxd.outcome"], span.attributes["error.type"]) == ("refused", "400")
    assert "gen_ai.latency.time_in_queue" not in span.attributes
    assert not span.failed
    unknown = traced_one(traced, "/v1/completions", {"model": SECRET, "prompt": "a"})
    assert (unknown.name, unknown.attributes["error.type"]) == ("text_completion", "404")
    assert "gen_ai.request.model" not in unknown.attributes


def test_a_client_that_leaves_ends_its_span(traced: tuple[LiveDaemon, Receiver]) -> None:
    daemon, one = traced

    async def leave() -> None:
        body = {"model": "m", "prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True}
        async with (
            aiohttp.ClientSession(daemon.url) as session,
            session.post("/v1/completions", json=body) as answer,
        ):
            await answer.content.readline()
            answer.close()

    asyncio.run(leave())
    span = one.next()
    assert (span.attributes["muxd.outcome"], span.attributes["error.type"]) == ("cancelled", "499")
    assert 0 < span.attributes["gen_ai.usage.output_tokens"] < 400


def test_what_asks_no_model_has_no_span(traced: tuple[LiveDaemon, Receiver]) -> None:
    daemon, one = traced
    assert ask(daemon, "/tokenize", {"prompt": SECRET})[0] == 200
    assert traced_one(traced, "/v1/completions", {"prompt": "a", "max_tokens": 1}).name == "text_completion m"
    assert one.empty


def test_no_text_is_exported(traced: tuple[LiveDaemon, Receiver]) -> None:
    status, answer = ask(
        traced[0], "/v1/completions", {"prompt": SECRET, "max_tokens": 9, "ignore_eos": True}
    )
    assert status == 200
    traced[1].next()
    said = json.loads(answer)["choices"][0]["text"]
    everything = b"".join(traced[1].bodies)
    assert SECRET.encode() not in everything
    assert said.encode() not in everything


def test_a_receiver_that_fails_costs_spans_and_nothing_else(tmp_path: Path) -> None:
    with receiver() as one:
        one.status = 400
        with live(config(tmp_path / "m", one.url), tmp_path) as daemon:
            body = {"prompt": "a", "max_tokens": 1}
            assert ask(daemon, "/v1/completions", body)[0] == 200
            assert one.asked.wait(60)
            one.status = 200
            assert ask(daemon, "/v1/completions", body)[0] == 200
            assert one.next().name == "text_completion m"
            assert one.empty
            counted = asyncio.run(_metrics(daemon))
            assert counted[("failed",)] == 1
            log = daemon.log
        assert log.count("does not take spans") == 1
        assert daemon.log.count("takes spans again") == 1
        assert "opentelemetry" not in daemon.log


async def _metrics(daemon: LiveDaemon) -> Any:
    async with aiohttp.ClientSession(daemon.url) as session, session.get("/metrics") as answer:
        return series(await answer.text(), "muxd_trace_spans_total")


def test_too_many_spans_are_dropped_and_counted_while_a_receiver_says_nothing() -> None:
    registry = CollectorRegistry()
    with receiver() as one:
        one.open.clear()
        spans = Spans(one.url, registry)
        for number in range(MOST + 5):
            record = Trace(str(number), 0.0, outcome="served")
            spans.ended(record, {}, route="/v1/completions", status=200, now=1.0)
        dropped = registry.get_sample_value("muxd_trace_spans_total", {"outcome": "dropped"})
        assert dropped == 5
        one.open.set()
        spans.close()
        assert registry.get_sample_value("muxd_trace_spans_total", {"outcome": "exported"}) == MOST


def test_operations_are_routes() -> None:
    assert OPERATIONS.keys() <= {route.path for route in ROUTES if route.method == "POST"}


def test_the_end_does_not_wait_for_a_receiver(caplog: pytest.LogCaptureFixture) -> None:
    with receiver() as one:
        one.open.clear()
        spans = Spans(one.url, CollectorRegistry())
        spans.ended(Trace("a", 0.0, outcome="served"), {}, route="/v1/completions", status=200, now=1.0)
        spans.close()
        assert "1 spans were not exported in time" in caplog.text
