"""The board and the alerts of docs/monitoring against a live daemon: every series they name is there, and
where a Prometheus is installed every query of them answers with data."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from support.live import LiveDaemon, live
from support.tiny import tiny_served

HOME = Path(__file__).parents[2] / "docs" / "monitoring"
RULES = (HOME / "alerts.yml").read_text()
BOARD = json.loads((HOME / "board.json").read_text())
QUERIES = [
    target["expr"].replace("$__rate_interval", "1m")
    for panel in BOARD["panels"]
    for target in panel["targets"]
]
NAMES = sorted(set(re.findall(r"muxd_\w+|process_\w+", " ".join(QUERIES) + RULES)))
# Of alerts what is compared: the alert itself answers only when something is wrong.
COMPARED = re.compile(r"expr: (?:\|\s*)?(.*?)\s(?:==|>|<)\s", re.DOTALL)


def test_alerts_say_what_to_do() -> None:
    assert RULES.count("- alert:") == RULES.count("summary:") == RULES.count("what:")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[LiveDaemon]:
    folder = tiny_served(tmp_path / "m")
    text = (
        f'[server]\nvllm_metrics = true\n[pool]\nbytes = "8M"\n'
        f'[[model]]\nname = "m"\npath = "{folder}"\nttft_slo = 60.0\ntpot_slo = 60.0\n'
    )
    with live(text, tmp_path) as daemon:
        yield daemon


def asked(daemon: LiveDaemon) -> None:
    body = {"model": "m", "prompt": "a b c d e f", "max_tokens": 8, "ignore_eos": True}
    assert httpx.post(f"{daemon.url}/v1/completions", json=body, timeout=60).status_code == 200


def test_every_series_that_is_named_is_there_and_none_tells_its_birth(daemon: LiveDaemon) -> None:
    asked(daemon)
    said = httpx.get(f"{daemon.url}/metrics").text
    there = set(re.findall(r"^([\w:]+)(?:\{| )", said, re.MULTILINE))
    assert [name for name in NAMES if name not in there and not name.startswith("muxd_gpu_")] == []
    assert [name for name in there if name.endswith("_created")] == []
    assert 'vllm:generation_tokens_total{engine="0",model_name="m"} 8.0' in said
    assert 'vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 1.0' in said
    assert 'vllm:kv_cache_usage_perc{engine="0",model_name="m"}' in said


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
def test_prometheus_answers_every_query_with_data(daemon: LiveDaemon, tmp_path: Path) -> None:
    subprocess.run(["promtool", "check", "rules", HOME / "alerts.yml"], check=True, capture_output=True)
    subprocess.run(["promtool", "check", "config", HOME / "prometheus.yml"], check=True, capture_output=True)
    with prometheus(daemon, tmp_path) as url:
        compared = [found.strip() for found in COMPARED.findall(RULES)]
        assert len(compared) == RULES.count("- alert:")
        wanted = [query for query in QUERIES + compared if "muxd_gpu_" not in query]
        deadline = time.monotonic() + 120
        while missing := [query for query in wanted if not answers(url, query)]:
            assert time.monotonic() < deadline, missing
            asked(daemon)  # rates need two scrapes with something between them


def answers(url: str, query: str) -> list[Any]:
    answer = httpx.get(f"{url}/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", (query, answer)
    found: list[Any] = answer["data"]["result"]
    return found


@contextmanager
def prometheus(daemon: LiveDaemon, folder: Path) -> Iterator[str]:
    """Scraping the daemon every second, with our rules."""
    config = (HOME / "prometheus.yml").read_text()
    config = config.replace("localhost:8000", daemon.url.removeprefix("http://"))
    config = config.replace("[alerts.yml]", f"[{HOME / 'alerts.yml'}]").replace("5s", "1s")
    (folder / "prometheus.yml").write_text(config)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 60
            while not ready(url):
                assert time.monotonic() < deadline
                assert process.poll() is None
            yield url
        finally:
            process.terminate()


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False
