"""The feed over a unit that works: the picture and every change since are the daemon's own picture."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import msgspec
import pytest
import tokenizers
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from support.http_door import Scripted
from support.played_unit import Bench

from muxd.api.app import make_app, make_runner
from muxd.api.metrics import HttpMetrics
from muxd.engine.stream import TokenStream
from muxd.errors import MuxdError, Overloaded, ShuttingDown
from muxd.text.tokenizer import Tokenizer
from muxd.watch import changes, feed
from muxd.watch.feed import Feed
from muxd.watch.schemas import Change, Picture
from muxd.watch.watcher import BUFFER, Watcher

TOKENIZER = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), {}, frozenset())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "socket")
    yield bench
    bench.arena.close()


def taken(watcher: Watcher) -> list[tuple[str, bytes]]:
    """Without waiting."""
    frames = list(watcher._frames)
    watcher._frames.clear()
    watcher._waiting = 0
    return frames


def follow(picture: Picture | None, frames: list[tuple[str, bytes]]) -> Picture:
    for name, body in frames:
        if name == "picture":
            picture = msgspec.json.decode(body, type=Picture)
        else:
            assert picture is not None
            picture = changes.apply(picture, msgspec.json.decode(body, type=Change))
    assert picture is not None
    return picture


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(["a.1", "b_2"]), st.integers(1, 30), st.integers(1, 20)),
        st.tuples(st.just("step"), st.floats(0.001, 2)),
        st.tuples(st.just("leave"), st.integers(0, 5)),
        st.tuples(st.just("lose"), st.sampled_from(["a.1", "b_2"])),
        st.tuples(st.just("sample")),
        st.tuples(st.just("event")),
        st.tuples(st.just("look")),
    ),
    max_size=40,
)


class Player:
    """Does what the steps say, as far as it can be done."""

    def __init__(self, bench: Bench):
        self.bench, self.count = bench, 0
        self.streams: list[TokenStream] = []

    def do(self, step: tuple[object, ...]) -> None:
        bench = self.bench
        match step:
            case ("submit", str(model), int(tokens), int(prompt)):
                self.count += 1
                try:
                    self.streams.append(bench.submit(model, f"cmpl-{self.count}-0", tokens, prompt))
                except MuxdError:
                    return  # its worker is gone
            case ("step", float(seconds)) if bench.sent:
                bench.step(seconds)
            case ("leave", int(index)) if index < len(self.streams):
                self.streams.pop(index).close()
            case ("lose", str(model)):
                bench.unit.worker_lost(model, MuxdError("gone"), final=False)
                bench.sent = [one for one in bench.sent if one[0] != model]
                bench.unit.worker_ready(model)
            case ("sample",):
                bench.clock.advance(5)
                bench.history.sample(bench.clock.now(), bench.service.observer.tokens_out)
            case ("event",):
                bench.events.add("policy", detail="mux")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_picture_and_changes_are_a_later_picture(tmp_path: Path, steps: list[tuple[object, ...]]) -> None:
    bench = Bench(tmp_path / "socket")

    async def main() -> None:
        player = Player(bench)
        for step in steps[: len(steps) // 2]:
            player.do(step)
        with bench.service.watch(lambda: None) as watcher:
            known = follow(None, taken(watcher))
            for step in steps[len(steps) // 2 :]:
                player.do(step)
                if step[0] == "look":
                    bench.service.feed.look()
                    known = follow(known, taken(watcher))
            bench.clock.advance(feed.QUIET)  # so that it is told whatever has happened
            bench.service.feed.look()
            known = follow(known, taken(watcher))
            fresh = bench.facts.picture()
        for table in ("time", "daemon", "devices", "models", "requests", "marks", "events"):
            assert getattr(known, table) == getattr(fresh, table)
        assert sum(one.batches for one in known.ran) == sum(one.batches for one in fresh.ran)
        for stream in player.streams:
            stream.close()

    try:
        asyncio.run(main())
    finally:
        bench.arena.close()


def test_a_pool_is_told_block_by_block(bench: Bench) -> None:
    async def main() -> None:
        bench.submit("a.1", "cmpl-1-0", tokens=100, prompt=40)

    asyncio.run(main())
    device = bench.facts.picture().devices["cpu"]
    assert sum(run.blocks for run in device.runs) == device.blocks
    account = device.accounts["a.1"]
    assert sum(run.blocks for run in device.runs if run.model == "a.1") == account.held + account.cached > 0
    assert {run.kind for run in device.runs} >= {"guaranteed", "free"}


def test_nothing_is_told_of_what_was_asked_and_said(bench: Bench) -> None:
    """Ids of tokens stand for text here: 1 in prompts, 5 in answers; what a client calls its request, too."""

    async def main() -> None:
        with bench.service.watch(lambda: None) as watcher:
            stream = bench.submit("a.1", "cmpl-1-0", tokens=3, prompt=40, http_id="what the client says")
            for _ in range(4):
                if bench.sent:
                    bench.step()
                bench.service.feed.look()
            frames = taken(watcher)
            stream.close()
        assert len(frames) > 1
        for _, body in frames:
            assert b"client says" not in body
            assert not longest_list_of_numbers(json.loads(body), beside=("tokens",)) >= 3

    asyncio.run(main())


def longest_list_of_numbers(value: object, beside: tuple[str, ...]) -> int:
    """Of whole numbers alone, as a prompt would be."""
    if isinstance(value, dict):
        return max(
            (longest_list_of_numbers(v, beside) for k, v in value.items() if k not in beside), default=0
        )
    if isinstance(value, list):
        own = len(value) if value and all(type(one) is int for one in value) else 0
        return max([own, *(longest_list_of_numbers(one, beside) for one in value)])
    return 0


def test_who_does_not_keep_up_is_cut_off_and_nobody_else(bench: Bench) -> None:
    async def main() -> None:
        cut: list[str] = []
        with (
            bench.service.watch(lambda: cut.append("slow")) as slow,
            bench.service.watch(lambda: cut.append("quick")) as quick,
        ):
            most = seen = 0
            taken(quick)
            while not cut:
                bench.events.add("policy", detail="x" * 10_000)
                bench.clock.advance(1)
                bench.service.feed.look()
                seen += len(taken(quick))
                most = max(most, slow._waiting)
            assert cut == ["slow"]
            assert BUFFER // 2 < most <= BUFFER
            assert slow.closed
            assert [frame async for frame in slow] == []
            bench.events.add("policy")
            bench.service.feed.look()
            assert len(taken(quick)) == 1
            assert seen

    asyncio.run(main())


def test_nothing_runs_while_nobody_watches(bench: Bench) -> None:
    async def main() -> None:
        watched: Feed = bench.service.feed
        before = asyncio.all_tasks()
        with watched.watch(lambda: None):
            assert len(asyncio.all_tasks()) == len(before) + 1
            with watched.watch(lambda: None):
                assert len(asyncio.all_tasks()) == len(before) + 1
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        assert watched._picture is None

    asyncio.run(main())


def test_only_so_many_watch_and_none_after_the_end(bench: Bench) -> None:
    async def main() -> None:
        watched = bench.service.feed
        with ExitStack() as stack:
            watchers = [stack.enter_context(watched.watch(lambda: None)) for _ in range(feed.WATCHERS)]
            with pytest.raises(Overloaded), watched.watch(lambda: None):
                pass
            watched.close()
            assert [name async for name, _ in watchers[0]] == ["picture"]
        with pytest.raises(ShuttingDown), watched.watch(lambda: None):
            pass

    asyncio.run(main())


def test_a_client_that_reads_nothing_is_cut_off_at_the_door(bench: Bench) -> None:
    """And who reads beside it hears everything."""

    async def main() -> None:
        door = Scripted(TOKENIZER)
        door.operator = bench.service
        app = make_app(door, max_body=1 << 20, metrics=HttpMetrics(CollectorRegistry()), texts=door)
        runner = make_runner(app, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            watched = bench.service.feed
            deaf = socket.create_connection((host, port))
            deaf.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://{host}:{port}/api/events") as answer,
            ):
                reader = asyncio.create_task(read(answer))
                for _ in range(10_000):  # turns of the loop, until both are let in
                    await asyncio.sleep(0)
                    if len(watched._watchers) == 2:
                        break
                told = 0
                while len(watched._watchers) == 2:
                    bench.events.add("policy", detail="x" * 50_000)
                    bench.clock.advance(1)
                    watched.look()
                    told += 1
                    assert told < 4000  # 200 MB: nobody's buffers are that large
                    for _ in range(20):
                        await asyncio.sleep(0)
                assert len(watched._watchers) == 1
                watched.close()
                assert await reader == told
            with deaf:
                while deaf.recv(1 << 20):
                    pass  # what the kernel still had
        except ConnectionResetError:
            pass  # it was aborted
        finally:
            await runner.cleanup()

    asyncio.run(main())


async def read(answer: aiohttp.ClientResponse) -> int:
    """How many changes have come."""
    return sum([line.startswith(b"event: change") async for line in answer.content])
