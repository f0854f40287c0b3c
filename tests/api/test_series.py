"""Both rooms' Prometheus series in one registry: names, labels, buckets."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from muxd.api.metrics import HttpMetrics
from muxd.engine.metrics import Metrics


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def samples(http: HttpMetrics) -> dict[tuple[Any, ...], float]:
    body, content_type = http.render()
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(body.decode()))
    return {(s.name, *sorted(s.labels.items())): s.value for f in families for s in f.samples}


def test_one_sequence_through_all_series(registry: CollectorRegistry) -> None:
    engine, http = Metrics(registry), HttpMetrics(registry)
    engine.add_model("m")
    engine.arrived("m", 12)
    engine.started("m", 0.2)
    engine.first_token("m", 0.03)
    engine.token("m", 0.02)
    engine.token("m", 0.4)
    engine.ended("m", "served", 0.6)
    engine.preempted("m")
    engine.worker_restarted("m")
    engine.watch_queue("m", running=lambda: 3, waiting=lambda: 4)
    engine.watch_blocks("m", "used", lambda: 90)
    engine.batch("m", "decode", 0.004)
    http.answered("/v1/models", "GET", 200)
    got, m = samples(http), ("model", "m")
    assert got["muxd_prompt_tokens_total", m] == 12
    assert got["muxd_generation_tokens_total", m] == 3
    assert got["muxd_requests_total", m, ("outcome", "served")] == 1
    assert got["muxd_requests_total", m, ("outcome", "failed")] == 0  # there before it happens
    assert got["muxd_time_to_first_token_seconds_bucket", ("le", "0.02"), m] == 0
    assert got["muxd_time_to_first_token_seconds_bucket", ("le", "0.04"), m] == 1
    assert got["muxd_inter_token_latency_seconds_count", m] == 2
    assert got["muxd_inter_token_latency_seconds_bucket", ("le", "0.025"), m] == 1
    assert got["muxd_e2e_request_latency_seconds_bucket", ("le", "0.8"), m] == 1
    assert got["muxd_request_queue_time_seconds_sum", m] == 0.2
    assert got["muxd_requests_running", m] == 3
    assert got["muxd_requests_waiting", m] == 4
    assert got["muxd_pool_blocks", m, ("state", "used")] == 90
    assert got["muxd_batch_seconds_count", m, ("phase", "decode")] == 1
    assert got["muxd_preemptions_total", m] == got["muxd_worker_restarts_total", m] == 1
    assert got["muxd_http_requests_total", ("method", "GET"), ("route", "/v1/models"), ("status", "200")] == 1
    assert got[("process_resident_memory_bytes",)] > 0


def test_registries_do_not_share(registry: CollectorRegistry) -> None:
    other = CollectorRegistry()
    Metrics(registry).arrived("m", 5)
    Metrics(other).arrived("m", 7)
    assert registry.get_sample_value("muxd_prompt_tokens_total", {"model": "m"}) == 5
    assert other.get_sample_value("muxd_prompt_tokens_total", {"model": "m"}) == 7


def test_a_made_up_method_is_no_label(registry: CollectorRegistry) -> None:
    http = HttpMetrics(registry)
    for word in ("BREW", "SPILL"):
        http.answered("unknown", word, 405)
    labels = {"route": "unknown", "method": "other", "status": "405"}
    assert registry.get_sample_value("muxd_http_requests_total", labels) == 2
