"""The asynchronous driver: what readers get, what the audit counts, what a shutdown does."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from support.lanes import lane_spec

from muxd.clock import VirtualClock
from muxd.engine.metrics import Metrics
from muxd.engine.observer import Observer
from muxd.engine.queue import Queue
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.engine.stream import TokenStream
from muxd.engine.unit import Unit
from muxd.errors import ContextTooLong, ModelNotReady, NoFiniteLogits, QueueFull, ShuttingDown, WorkerLost
from muxd.messages import NO_TOKEN, BatchDone, Prefill, Sampling, TokenLogprob
from muxd.pool.ledger import Ledger


class Bench:
    """A unit with one model, its commands caught; ``step`` answers the running one."""

    def __init__(self, max_queue: int = 100, settings: Settings | None = None, **unit: Any):
        self.ledger = Ledger(64)
        self.ledger.add_model("m", 2, 32)
        lane = lane_spec("m", 50, 4, 2, 100, 8, max_queue, 32)
        scheduler = Scheduler([lane], self.ledger, Shares([50, 100]), settings or Settings())
        self.sent: list = []  # type: ignore[type-arg]
        self.clock = VirtualClock()
        self.observer = Observer(Metrics(CollectorRegistry()))
        self.unit = Unit(
            scheduler, lambda model, command: self.sent.append(command), self.clock, self.observer, **unit
        )

    def ready(self) -> "Bench":
        self.unit.worker_ready("m")
        return self

    def submit(self, max_tokens: int = 3, prompt: int = 4) -> TokenStream:
        return self.unit.submit(
            Request("r", "m", [1] * prompt, max_tokens, Sampling(temperature=0.0), frozenset([9]))
        )

    def step(self, token: int = 5, logprobs: dict[int, TokenLogprob] | None = None) -> None:
        command = self.sent.pop(0)
        count = len(command.chunks) if isinstance(command, Prefill) else len(command.seqs)
        self.clock.advance(0.1)
        self.unit.batch_done("m", BatchDone(command.batch, [token] * count, 0.1, logprobs))


def in_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())  # type: ignore[arg-type]

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@in_loop
async def test_a_reader_gets_every_token_once_and_the_finish_last() -> None:
    bench = Bench().ready()
    stream = bench.submit()
    seen = []
    for _ in range(3):
        bench.step()
        seen.append(await anext(stream))
    assert [delta.tokens for delta in seen] == [[5], [5], [5]]
    assert [delta.finish for delta in seen] == [None, None, "length"]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert bench.observer.outcomes == {"served": 1}


@in_loop
async def test_who_is_turned_away_is_in_the_journal() -> None:
    bench = Bench().ready()
    bench.unit.refuse("m", ModelNotReady("m is being unloaded"))
    with pytest.raises(ModelNotReady):
        bench.unit.submit(Request("r1", "m", [1], 1, Sampling(), frozenset()))
    (times,) = bench.unit.journal.find("r1", bench.clock.now())
    assert (times.state, times.total, times.detail) == ("refused", 0.0, "m is being unloaded")
    assert bench.observer.outcomes == {"refused": 1}


def twelve() -> list[Request]:
    return [Request(f"r{i}", "m", [1] * 4, 3, Sampling(temperature=0.0), frozenset([9])) for i in range(12)]


@in_loop
async def test_those_who_ask_between_two_events_are_counted_once() -> None:
    """Two thousand streams that each counted the queue stopped every stream for 1.5 s."""
    bench = Bench().ready()
    requests = twelve()
    streams = [bench.unit.submit(one) for one in requests]
    with patch.object(Queue, "in_order", autospec=True, side_effect=Queue.in_order) as counted:
        for _ in range(2):
            assert [bench.unit.ahead(one) for one in requests] == list(range(12))
    assert counted.call_count == 1
    for stream in streams:
        stream.close()


@in_loop
async def test_how_many_go_first() -> None:
    bench = Bench().ready()
    requests = twelve()
    streams = [bench.unit.submit(one) for one in requests]
    assert [bench.unit.ahead(one) for one in requests] == list(range(12))
    streams[-2].close()
    assert bench.unit.ahead(requests[-1]) == 10
    bench.step()
    assert bench.unit.ahead(requests[0]) is None
    assert bench.unit.ahead(Request("r", "unknown", [1], 1, Sampling(), frozenset())) is None
    for stream in streams:
        stream.close()


@in_loop
async def test_a_slow_reader_gets_what_has_gathered_in_one_piece() -> None:
    bench = Bench().ready()
    stream = bench.submit()
    for _ in range(3):
        bench.step()
    delta = await anext(stream)
    assert (delta.tokens, delta.finish) == ([5, 5, 5], "length")


@in_loop
async def test_tokens_come_before_the_error_that_ends_a_stream() -> None:
    bench = Bench().ready()
    stream = bench.submit()
    bench.step()
    bench.unit.worker_lost("m", ModelNotReady("gone"), final=True)
    assert (await anext(stream)).tokens == [5]
    with pytest.raises(ModelNotReady):
        await anext(stream)
    assert bench.observer.outcomes == {"failed": 1}
    assert bench.ledger.unheld_blocks == 64


@in_loop
async def test_a_stream_whose_worker_is_lost_goes_on_with_the_next_one() -> None:
    bench = Bench().ready()
    stream = bench.submit()
    bench.step(token=6)
    bench.unit.worker_lost("m", WorkerLost("gone"))
    bench.sent.clear()
    assert (await anext(stream)).tokens == [6]
    bench.ready()
    again = bench.sent[0].chunks[0]
    assert np.frombuffer(again.tokens, "<i4").tolist() == [1, 1, 1, 1, 6]
    assert again.prompt_tokens == 4
    bench.step(token=7)
    bench.step(token=8)
    delta = await anext(stream)
    assert (delta.tokens, delta.finish) == ([7, 8], "length")
    assert bench.observer.outcomes == {"served": 1}


def test_a_request_without_finite_logits_ends_alone_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene() -> None:
        bench = Bench().ready()
        first, second = bench.submit(max_tokens=1), bench.submit(max_tokens=1)
        bench.step()
        assert (await anext(first)).finish == "length"
        bench.step(token=NO_TOKEN)
        with pytest.raises(NoFiniteLogits, match="no finite logits for token 4 of r"):
            await anext(second)
        assert bench.observer.outcomes == {"served": 1, "failed": 1}
        assert bench.ledger.unheld_blocks == 64

    asyncio.run(scene())
    assert "m: the model produced no finite logits" in caplog.text


@in_loop
async def test_a_worker_that_does_not_answer_is_told_of_and_then_given_up() -> None:
    heard: list[tuple[str, bool]] = []
    bench = Bench(settings=Settings(batch_timeout=0.01), hung=lambda m, why, last: heard.append((m, last)))
    bench.ready()
    bench.submit()
    while len(heard) < 2:
        bench.clock.advance(1.0)
        await asyncio.sleep(0.001)
    assert heard == [("m", False), ("m", True)]
    assert not bench.unit.lanes["m"].ready


@in_loop
async def test_logprobs_travel_with_their_tokens() -> None:
    bench = Bench().ready()
    first, second = bench.submit(), bench.submit()
    bench.step(logprobs=None)  # prefill of the first alone: the second had not arrived
    bench.step(logprobs=None)
    bench.step(logprobs={1: TokenLogprob(-0.5, [])})
    assert (await anext(first)).logprobs is None
    assert (await anext(second)).logprobs == [TokenLogprob(-0.5, [])]


@in_loop
async def test_closing_a_stream_cancels_it_within_the_running_step() -> None:
    bench = Bench().ready()
    stream = bench.submit(max_tokens=50)
    bench.step()
    stream.close()
    stream.close()
    bench.step()
    assert bench.sent == []
    assert bench.ledger.unheld_blocks == 64
    assert bench.observer.outcomes == {"cancelled": 1}
    assert bench.unit.idle


@in_loop
async def test_a_satisfied_reader_counts_as_served() -> None:
    bench = Bench().ready()
    stream = bench.submit(max_tokens=50)
    bench.step()
    await anext(stream)
    stream.close(served=True)
    assert bench.observer.outcomes == {"served": 1}


@in_loop
async def test_closing_after_the_end_changes_nothing() -> None:
    bench = Bench().ready()
    stream = bench.submit(max_tokens=1)
    bench.step()
    stream.close()
    assert bench.observer.outcomes == {"served": 1}


@in_loop
async def test_refusals_are_raised_and_counted() -> None:
    bench = Bench(max_queue=1)
    bench.submit()
    with pytest.raises(QueueFull):
        bench.submit()
    with pytest.raises(ContextTooLong):
        bench.submit(prompt=100)
    bench.unit.worker_lost("m", ModelNotReady("broken folder"), final=True)
    with pytest.raises(ModelNotReady, match="broken folder"):
        bench.submit()
    assert bench.observer.outcomes == {"refused": 3, "failed": 1}
    assert bench.observer.arrivals == sum(bench.observer.outcomes.values())


@in_loop
async def test_drain_waits_for_streams_and_refuses_newcomers() -> None:
    bench = Bench().ready()
    stream = bench.submit(max_tokens=2)
    drain = asyncio.create_task(bench.unit.drain(60))
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        bench.submit()
    bench.step()
    bench.step()
    await drain
    assert (await anext(stream)).finish == "length"
    assert bench.observer.outcomes == {"served": 1, "refused": 1}


@in_loop
async def test_drain_tells_the_rest_why_when_the_grace_is_over() -> None:
    bench = Bench().ready()
    stream = bench.submit(max_tokens=50)
    bench.step()
    await bench.unit.drain(0)
    assert (await anext(stream)).tokens == [5]
    with pytest.raises(ShuttingDown):
        await anext(stream)
    assert bench.ledger.unheld_blocks == 64


@in_loop
async def test_whether_there_is_a_place_can_be_asked_before_the_text_is_read() -> None:
    """A refusal is counted as any other, and who would displace somebody is not refused."""

    def unread(key: str, model: str = "m") -> Request:
        return Request("", model, [], 0, Sampling(), frozenset(), key=key)

    bench = Bench(max_queue=3).ready()
    bench.unit.check_room(unread("a"))
    for _ in range(3):
        bench.submit()
    with pytest.raises(QueueFull, match="m already has 3 requests waiting"):
        bench.unit.check_room(unread(""))
    bench.unit.check_room(unread("another key"))
    bench.unit.check_room(unread("", "no model of this unit"))
    assert (bench.observer.arrivals, bench.observer.outcomes) == (4, {"refused": 1})
