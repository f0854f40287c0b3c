"""The load generator against a real daemon: every request once, at its time, with its tokens."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from aiohttp import web
from support.live import LiveDaemon, live
from support.tiny import tiny_served
from typer.testing import CliRunner

from muxd.cli.muxctl import app
from muxd.errors import ConfigError, DaemonUnreachable
from muxd.sim.records import Outcome
from muxd.sim.replay import Replay
from muxd.sim.report import Report
from muxd.sim.workload import Item, Workload, write


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    """Two tiny models; the second takes one request and lets one wait."""
    folder = tmp_path_factory.mktemp("bench")
    model = tiny_served(folder / "tiny")
    config = "".join(
        f'[[model]]\nname = "{name}"\npath = "{model}"\ndtype = "float32"\n{more}'
        for name, more in (("wide", ""), ("narrow", "max_running = 1\nmax_queue = 1\n"))
    )
    with live(f'[pool]\nbytes = "16M"\n{config}', folder) as running:
        yield running


def replay(daemon: LiveDaemon, workload: Workload) -> Replay:
    ended: list[int] = []
    run = Replay(workload, daemon.url, progress=ended.append)
    asyncio.run(run.run())
    assert sum(ended) == len(workload.items)
    return run


def test_every_request_is_served_with_its_tokens_at_its_time(daemon: LiveDaemon) -> None:
    before = daemon.status().requests.served
    items = [Item(0.05 * i, "wide", 5 + i, 1 + i % 7) for i in range(20)]
    run = replay(daemon, Workload(items, {}))
    records = run.records
    assert (records.outcome == Outcome.SERVED).all(), records.errors
    assert daemon.status().requests.served - before == 20
    assert (records.sent >= [item.time for item in items]).all(), "never early"
    assert np.allclose(run.lateness, records.sent - [item.time for item in items])
    assert (records.sent < records.first).all()
    assert (records.first <= records.end).all()


def test_what_the_daemon_refuses_is_counted_with_its_reason(daemon: LiveDaemon) -> None:
    records = replay(daemon, Workload([Item(0.0, "narrow", 8, 100)] * 10, {})).records
    outcomes = [Outcome(code) for code in records.outcome]
    assert outcomes.count(Outcome.SERVED) >= 1
    assert outcomes.count(Outcome.REFUSED) >= 5
    assert set(outcomes) == {Outcome.SERVED, Outcome.REFUSED}
    (reason,) = records.errors
    assert reason == "HTTP 429: narrow already has # requests waiting; try again later"


def test_a_model_that_is_not_served_stops_it_before_it_starts(daemon: LiveDaemon) -> None:
    before = daemon.status().requests.served
    with pytest.raises(ConfigError, match="does not serve huge, only narrow, wide"):
        replay(daemon, Workload([Item(0.0, "wide", 5, 1), Item(0.0, "huge", 5, 1)], {}))
    assert daemon.status().requests.served == before


def test_nobody_there_is_said() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        run = Replay(Workload([Item(0.0, "a", 1, 1)], {}), url, progress=lambda done: None)
        with pytest.raises(DaemonUnreachable, match="no muxd answers"):
            asyncio.run(run.run())


def test_the_command_reports_as_the_simulator_does(daemon: LiveDaemon, tmp_path: Path) -> None:
    write(tmp_path / "w.jsonl", Workload([Item(0.02 * i, "wide", 9, 5) for i in range(10)], {"seed": 4}))
    args = ["bench", "--workload", str(tmp_path / "w.jsonl"), "--socket", str(daemon.socket), "--json", "-"]
    result = CliRunner().invoke(app, args, env={"MUXD_HOME": str(tmp_path)})
    assert result.exit_code == 0, result.output
    report = msgspec.json.decode(result.output, type=Report)
    assert (report.kind, report.policy) == ("live", daemon.status().policy)
    assert (report.total.served, report.total.requests) == (10, 10)
    assert report.workload == {"seed": 4}
    assert report.total.slo is None, "no profile, no SLO"
    assert "late" in report.notes["lateness"]


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":%d}}\n\ndata: [DONE]\n\n'


async def broken(request: web.Request) -> web.StreamResponse:
    """Answers as the daemon does when something goes wrong on the way; which, says the model's name."""
    model = msgspec.json.decode(await request.read())["model"]
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    await answer.write(b'data: {"choices":[{"index":0,"text":"a"}]}\n\n')
    if model == "torn":
        assert request.transport is not None
        request.transport.abort()
    elif model == "failing":
        await answer.write(b'data: {"error":{"message":"worker 7 died"}}\n\ndata: [DONE]\n\n')
    else:
        await answer.write(USAGE % 3)
    return answer


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("torn", "connection: ClientPayloadError"),
        ("failing", "the stream broke off: worker # died"),
        ("short", "3 tokens came"),
    ],
)
def test_a_stream_that_is_not_whole_is_failed(name: str, reason: str) -> None:
    async def listing(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name}]})

    async def run() -> Replay:
        app = web.Application()
        app.router.add_get("/v1/models", listing)
        app.router.add_post("/v1/completions", broken)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            found = Replay(Workload([Item(0.0, name, 4, 5)], {}), url, progress=lambda done: None)
            await found.run()
            return found
        finally:
            await runner.cleanup()

    records = asyncio.run(run()).records
    assert records.outcome[0] == Outcome.FAILED
    assert records.errors == {reason: 1}
