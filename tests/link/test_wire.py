"""Daemon end and worker end over real ZeroMQ, under uvloop and the plain loop."""

import asyncio

import pytest
from support.wire import Bench, Ear, Play, command, echo_worker, ready

from muxd.link.worker_end import WorkerEnd
from muxd.messages import BatchDone, RankDone, Shutdown, ToWorker, encode

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")


def test_commands_and_replies_keep_their_order_and_their_worker(play: Play) -> None:
    """Two workers, 500 commands each, sent without waiting: no wake-up may be lost."""

    async def scene(bench: Bench) -> None:
        names = ["SmolLM2/both/1", "a_b/δ/1"]
        threads = []
        for name in names:
            bench.announce(name)
            threads.append(echo_worker(bench.end.endpoint, name))
        assert {await bench.next(), await bench.next()} == {(n, ready(n)) for n in names}
        for batch in range(500):
            for name in names:
                bench.end.send(name, command(batch))
        seen: dict[str, list[int]] = {name: [] for name in names}
        for _ in range(1000):
            worker, message = await bench.next()
            assert isinstance(message, BatchDone)
            seen[worker].append(message.batch)
        assert seen == {name: list(range(500)) for name in names}
        for name in names:
            bench.end.send(name, Shutdown())
        for thread in threads:
            await asyncio.to_thread(thread.join)

    play(scene)


def test_who_follows_a_worker_gets_what_it_gets_in_the_same_order(play: Play) -> None:
    """Ranks of one model: the first answers, the others say what they sampled."""

    async def scene(bench: Bench) -> None:
        names = ["m/1", "m/1/1", "m/1/2"]
        for name in names:
            bench.end.announce(name, Ear(name, bench.events), () if name != names[0] else names[1:])
        links = [WorkerEnd(bench.end.endpoint, name, follows=name != names[0]) for name in names]
        for name, link in zip(names, links, strict=True):
            link.send(ready(name))
        assert {await bench.next() for _ in names} == {(name, ready(name)) for name in names}
        for batch in range(20):
            bench.end.send(names[0], command(batch))
        for batch in range(20):
            for link in links:
                assert link.receive() == command(batch)
                link.send(BatchDone(batch, [batch], 0.5))
        seen = [await bench.next() for _ in range(60)]
        for name in names:
            answer = [message for worker, message in seen if worker == name]
            assert answer == [
                BatchDone(batch, [batch], 0.5) if name == names[0] else RankDone(batch, [batch])
                for batch in range(20)
            ]
        for link in links:
            link.close()

    play(scene)


def test_ping_pong_never_stalls(play: Play) -> None:
    """One command at a time, sent from the reply's own callback: the pattern of decoding one stream."""

    async def scene(bench: Bench) -> None:
        bench.announce("w")
        thread = echo_worker(bench.end.endpoint, "w")
        await bench.next()
        for batch in range(2000):
            bench.end.send("w", command(batch))
            assert await bench.next() == ("w", BatchDone(batch, [batch], 0.0))
        bench.end.send("w", Shutdown())
        await asyncio.to_thread(thread.join)

    play(scene)


def test_sending_to_a_worker_that_never_came_reports_it_lost(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        bench.announce("w")
        bench.end.send("w", command(1))
        assert bench.events.empty()  # never from inside send
        worker, reason = await bench.next()
        assert worker == "w"
        assert "not connected" in str(reason)
        bench.end.send("w", command(2))  # lost once is lost: no second report
        bench.end.send("nobody", command(2))
        await asyncio.sleep(0)
        assert bench.events.empty()

    play(scene)


def test_a_worker_that_sleeps_is_woken_by_a_command_and_hardly_sleeps_at_all_for_nothing(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        def body() -> list[object]:
            link = WorkerEnd(bench.end.endpoint, "w")
            link.wait(0.0)
            link.wait(-1.0)
            before = link.poll()
            link.send(ready("w"))
            link.wait(3600.0)
            found = link.poll()
            link.close()
            return [before, found]

        bench.announce("w")
        told = asyncio.create_task(asyncio.to_thread(body))
        await bench.next()
        bench.end.send("w", command(7))
        assert await told == [None, command(7)]

    play(scene)


def test_every_message_survives_the_wire() -> None:
    """The unions decode what the structs encode; a command is no reply."""
    from muxd.messages import decode_from_worker, decode_to_worker

    commands: list[ToWorker] = [command(7), Shutdown()]
    assert [decode_to_worker(encode(c)) for c in commands] == commands
    assert decode_from_worker(encode(ready("w"))) == ready("w")


def test_a_worker_that_was_told_to_end_gets_no_more_commands(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        bench.announce("w")
        thread = echo_worker(bench.end.endpoint, "w")
        await bench.next()
        bench.end.send("w", Shutdown())
        bench.end.hush("w")
        bench.end.send("w", Shutdown())
        await asyncio.to_thread(thread.join)
        bench.end.send("w", Shutdown())
        assert bench.events.empty(), "it is not reported lost"

    play(scene)
