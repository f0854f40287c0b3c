"""SIGTERM, a killed daemon, a killed worker: who is told what, and that nothing stays behind."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from support import leaks
from support.live import LiveDaemon, demo_config
from support.where import EVERYWHERE, Where, on

pytestmark = pytest.mark.demo


def memfds_of(pids: list[int]) -> list[str]:
    return [name for pid in pids if Path(f"/proc/{pid}").exists() for name in leaks.memfds(pid)]


def endless(client: openai.OpenAI, model: str) -> Iterator[str]:
    """A stream that does not end by itself for a long while; yields texts, after the first has come."""
    stream = client.completions.create(
        model=model, prompt="Tell me about the sea.", stream=True, max_tokens=1900, temperature=0,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    texts = (chunk.choices[0].text for chunk in stream if chunk.choices)
    first = next(texts)
    yield first
    yield from texts


@pytest.mark.slow
@on("cpu", "gpu")  # references are slow: not so many tokens in so little time on the stand-in
def test_sigterm_lets_short_streams_end_tells_long_ones_why_and_leaves_nothing(
    where: Where, tmp_path: Path
) -> None:
    # Long enough for 24 tokens on a slow machine, and no answer of the other model ends in it.
    config = demo_config("smol", "gemma", extra="[server]\nshutdown_grace = 8.0\n")
    with where.live(config, tmp_path) as daemon, daemon.client() as client:
        pids = [daemon.process.pid, *daemon.workers().values()]
        where.check_regions(daemon.process.pid, "pool", "weights", "weights")
        short = client.completions.create(
            model="gemma", prompt="Hello", stream=True, max_tokens=24, temperature=0,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        long = endless(client, "smol")
        next(long)
        daemon.process.send_signal(signal.SIGTERM)
        finishes = [chunk.choices[0].finish_reason for chunk in short if chunk.choices]
        assert finishes[-1] == "length"
        with pytest.raises(openai.APIError, match="shutting down"):
            list(long)
        assert daemon.process.wait(60) == 0
        assert all(leaks.gone(pid) for pid in pids)
        assert memfds_of(pids) == []
        assert not daemon.socket.exists()


@on(*EVERYWHERE)
def test_sigkill_of_the_daemon_takes_every_worker_with_it_within_five_seconds(
    where: Where, tmp_path: Path
) -> None:
    daemon = LiveDaemon(demo_config("smol", "gemma"), tmp_path, where.env)
    try:
        workers = daemon.wait_ready().workers()
        assert len(workers) == 2
        with daemon.client() as client:
            stream = endless(client, "smol")
            next(stream)
            os.kill(daemon.process.pid, signal.SIGKILL)
            with pytest.raises(openai.OpenAIError):
                list(stream)
        assert all(leaks.gone(pid, 5) for pid in workers.values())
        daemon.process.wait()
    finally:
        daemon.close()


@on(*EVERYWHERE)
def test_sigkill_of_a_worker_pauses_its_streams_and_spares_the_other_model(
    where: Where, tmp_path: Path
) -> None:
    with where.live(demo_config("smol", "gemma"), tmp_path) as daemon, daemon.client() as client:
        paused, spared = endless(client, "smol"), endless(client, "gemma")
        next(paused)
        next(spared)
        before = daemon.workers()
        os.kill(before["smol"], signal.SIGKILL)
        # A request sent meanwhile waits for the new worker and is served; the stream goes on.
        answer = client.completions.create(model="smol", prompt="Hello", max_tokens=4, temperature=0)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4
        assert [next(paused) for _ in range(20)]
        after = daemon.workers()
        assert after["gemma"] == before["gemma"]
        assert after["smol"] != before["smol"]
        assert [next(spared) for _ in range(20)]
        text = metrics(daemon)
        assert 'muxd_worker_restarts_total{model="smol"} 1.0' in text
        # Two where the second request had begun before the death was noticed.
        assert re.search(r'muxd_resumed_total{model="smol"} [12]\.0', text)
        for stream in (paused, spared):
            stream.close()  # type: ignore[attr-defined]


def metrics(daemon: LiveDaemon) -> str:
    import urllib.request

    with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=60) as answer:
        return str(answer.read().decode())
