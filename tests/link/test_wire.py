"""Daemon end and worker end over real ZeroMQ, under uvloop and the plain loop."""

import asyncio
import itertools
import select
import shutil
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
import zmq

from muxd.errors import ConfigError
from muxd.link.daemon_end import DaemonEnd, private_directory
from muxd.link.fds import WireError
from muxd.link.worker_end import WorkerEnd
from muxd.messages import BatchDone, Decode, FromWorker, NewRows, RankDone, Ready, Shutdown, ToWorker, encode

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")


@pytest.fixture(scope="module", autouse=True)
def libuv_is_initialised() -> None:
    """libuv opens one pipe for signals per process, at its first loop: no leak of ours."""
    uvloop.run(asyncio.sleep(0))


class Ear:
    """Puts what it hears of a worker into a queue."""

    def __init__(self, worker: str, events: "asyncio.Queue[tuple[str, FromWorker | str]]"):
        self.worker, self.events = worker, events

    def on_message(self, message: FromWorker) -> None:
        self.events.put_nowait((self.worker, message))

    def on_lost(self, reason: str) -> None:
        self.events.put_nowait((self.worker, reason))


class Bench:
    """A daemon end whose callbacks fill a queue, in a directory of its own."""

    def __init__(self, directory: Path):
        self.events: asyncio.Queue[tuple[str, FromWorker | str]] = asyncio.Queue()
        self.end = DaemonEnd(directory)

    def announce(self, worker: str) -> None:
        self.end.announce(worker, Ear(worker, self.events))

    async def next(self) -> tuple[str, FromWorker | str]:
        return await asyncio.wait_for(self.events.get(), 60)


@pytest.fixture(params=["uvloop", "asyncio"])
def play(request: pytest.FixtureRequest) -> Callable[[Callable[[Bench], Awaitable[None]]], None]:
    """Run a scene with a bench in a fresh loop; the directory must be empty afterwards."""

    def run(scene: Callable[[Bench], Awaitable[None]]) -> None:
        directory = private_directory()

        async def whole() -> None:
            bench = Bench(directory)
            try:
                await asyncio.wait_for(scene(bench), 60)
            finally:
                bench.end.close()

        if request.param == "uvloop":
            uvloop.run(whole())
        else:
            asyncio.run(whole())
        directory.rmdir()  # fails if the socket file is left

    return run


def ready(worker: str) -> Ready:
    return Ready(worker, 1, "2", 0.0, 0.0)


def command(batch: int) -> Decode:
    return Decode(batch, 100, NewRows(), [1], [], [])


def echo_worker(endpoint: str, worker: str) -> threading.Thread:
    """A worker end in a thread: says Ready, answers each Decode with its number, stops at Shutdown."""

    def body() -> None:
        link = WorkerEnd(endpoint, worker)
        link.send(ready(worker))
        while isinstance(message := link.receive(), Decode):
            link.send(BatchDone(message.batch, [message.batch], 0.0))
        assert isinstance(message, Shutdown)
        link.close()

    thread = threading.Thread(target=body)
    thread.start()
    return thread


Play = Callable[[Callable[[Bench], Awaitable[None]]], None]


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


def raw_worker(bench: Bench, name: bytes) -> tuple[zmq.Context[zmq.Socket[bytes]], zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.set(zmq.ROUTING_ID, name)
    socket.connect(bench.end.endpoint)
    return context, socket


NOT_UTF8 = encode(ready("bad")).replace(b"bad", b"b\xffd")
NESTED = b"\x91" * 100_000


@pytest.mark.parametrize("nonsense", [b"", b"\xc1\xff", encode(Shutdown()), encode([1, 2]), NOT_UTF8, NESTED])
def test_nonsense_from_a_worker_loses_that_worker_only(play: Play, nonsense: bytes) -> None:
    async def scene(bench: Bench) -> None:
        for name in ("bad", "good"):
            bench.announce(name)
        thread = echo_worker(bench.end.endpoint, "good")
        assert await bench.next() == ("good", ready("good"))
        context, socket = raw_worker(bench, b"bad")
        socket.send(nonsense)
        worker, reason = await bench.next()
        assert worker == "bad"
        assert "cannot be read" in str(reason)
        socket.send(encode(ready("bad")))  # too late, it is not believed any more
        bench.end.send("good", command(3))
        assert await bench.next() == ("good", BatchDone(3, [3], 0.0))
        bench.end.send("good", Shutdown())
        await asyncio.to_thread(thread.join)
        context.destroy(linger=0)

    play(scene)


def test_a_wake_up_swallowed_by_sending_is_not_lost(play: Play) -> None:
    """ZMQ_FD is edge-triggered: a send that finds the arrival signal takes it, and no event follows."""

    async def scene(bench: Bench) -> None:
        bench.announce("w")
        context, socket = raw_worker(bench, b"w")
        socket.send(encode(ready("w")))
        await bench.next()
        socket.send(encode(BatchDone(1, [], 0.0)))
        poll = select.poll()
        poll.register(bench.end._fd, select.POLLIN)
        assert poll.poll(10_000)  # it has arrived; the loop has not run since
        for batch in itertools.count():
            bench.end.send("w", command(batch))
            if not poll.poll(0):
                break
        assert await bench.next() == ("w", BatchDone(1, [], 0.0))
        context.destroy(linger=0)

    play(scene)


@pytest.mark.parametrize("nonsense", [NOT_UTF8, NESTED])
def test_what_others_say_after_nonsense_is_read(play: Play, nonsense: bytes) -> None:
    async def scene(bench: Bench) -> None:
        for name in ("bad", "good"):
            bench.announce(name)
        workers = [raw_worker(bench, name) for name in (b"bad", b"good")]
        workers[0][1].send(nonsense)
        for batch in range(50):
            workers[1][1].send(encode(BatchDone(batch, [], 0.0)))
        heard = [await bench.next() for _ in range(51)]
        assert [said for name, said in heard if name == "good"] == [BatchDone(i, [], 0.0) for i in range(50)]
        assert [name for name, _ in heard].count("bad") == 1
        for context, _ in workers:
            context.destroy(linger=0)

    play(scene)


def test_a_folder_that_was_removed_is_made_again_for_who_comes_next(play: Play) -> None:
    """Those who are connected go on: their messages come, theirs are delivered."""

    async def scene(bench: Bench) -> None:
        bench.announce("old")
        thread = echo_worker(bench.end.endpoint, "old")
        assert await bench.next() == ("old", ready("old"))
        shutil.rmtree(Path(bench.end.endpoint.removeprefix("ipc://")).parent)
        bench.announce("new")
        other = echo_worker(bench.end.endpoint, "new")
        assert await bench.next() == ("new", ready("new"))
        for name in ("old", "new"):
            bench.end.send(name, command(3))
            assert await bench.next() == (name, BatchDone(3, [3], 0.0))
            bench.end.send(name, Shutdown())
        for one in (thread, other):
            await asyncio.to_thread(one.join)

    play(scene)


def test_a_live_socket_is_not_connected_to_by_the_next_daemon(tmp_path: Path) -> None:
    """libzmq ends the process that is connected to when it has no descriptor left."""
    folder, dead = tmp_path / "muxd-live", tmp_path / "muxd-dead"
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as killed:
        for one, place in ((live, folder), (killed, dead)):
            place.mkdir()
            one.bind(str(place / "workers"))
            one.listen()
        killed.close()
        live.setblocking(False)
        private_directory(tmp_path).rmdir()
        with pytest.raises(BlockingIOError):
            live.accept()
    assert folder.exists()
    assert not dead.exists()


def test_strangers_and_forgotten_workers_are_not_heard(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        for name in ("old", "w"):
            bench.announce(name)
        for identity in (b"stranger", b"old", b"\x80\xff"):
            context, socket = raw_worker(bench, identity)
            if identity == b"old":
                bench.end.forget("old")
            socket.send(encode(ready("w")))
            context.destroy(linger=5000)
        thread = echo_worker(bench.end.endpoint, "w")
        assert await bench.next() == ("w", ready("w"))
        bench.end.send("w", Shutdown())
        await asyncio.to_thread(thread.join)
        assert bench.events.empty()

    play(scene)


def test_a_callback_that_raises_loses_one_worker_not_the_daemon(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(bench: Bench) -> None:
        class Exploding(Ear):
            def on_message(self, message: FromWorker) -> None:
                raise KeyError("defect")

        bench.end.announce("first", Exploding("first", bench.events))
        bench.announce("second")
        context, socket = raw_worker(bench, b"first")
        socket.send(encode(ready("first")))
        assert await bench.next() == ("first", "its Ready could not be handled")
        context.destroy(linger=0)
        thread = echo_worker(bench.end.endpoint, "second")
        assert await bench.next() == ("second", ready("second"))
        bench.end.send("second", Shutdown())
        await asyncio.to_thread(thread.join)

    play(scene)
    assert "handling Ready of first failed" in caplog.text


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


def test_a_malformed_command_is_an_error_at_the_worker(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        def body() -> str:
            link = WorkerEnd(bench.end.endpoint, "w")
            link.send(ready("w"))
            try:
                with pytest.raises(WireError, match="malformed command of 3 bytes") as caught:
                    link.receive()
                return caught.value.message
            finally:
                link.close()

        bench.announce("w")
        told = asyncio.create_task(asyncio.to_thread(body))
        await bench.next()
        bench.end._socket.send_multipart([b"w", b"\xc1\xc1\xc1"])
        assert "malformed" in await told

    play(scene)


def test_the_directory_is_private_and_the_path_short(tmp_path: Path) -> None:
    async def bind(directory: Path) -> None:
        DaemonEnd(directory).close()

    directory = private_directory(tmp_path)
    assert directory.stat().st_mode & 0o777 == 0o700
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        asyncio.run(bind(open_to_all))
    long = tmp_path / ("x" * 100)
    long.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match=r"too long for a Unix socket \(\d+ bytes, at most 107\)"):
        asyncio.run(bind(long))
    with pytest.raises(ConfigError, match="set XDG_RUNTIME_DIR"):
        private_directory(tmp_path / "missing")


def test_an_identity_zeromq_cannot_carry_names_the_setting(play: Play) -> None:
    async def scene(bench: Bench) -> None:
        with pytest.raises(ConfigError, match=r"model\.name"):
            bench.announce("n" * 256)

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
