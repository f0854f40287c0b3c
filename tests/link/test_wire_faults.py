"""What strangers, nonsense and folders that are gone do to the wire: to one worker, and to nobody else."""

import asyncio
import itertools
import select
import shutil
import socket
from pathlib import Path

import pytest
import zmq
from support.wire import Bench, Ear, Play, command, echo_worker, ready

from muxd.errors import ConfigError
from muxd.link.daemon_end import DaemonEnd, private_directory
from muxd.link.fds import WireError
from muxd.link.worker_end import WorkerEnd
from muxd.messages import BatchDone, FromWorker, Shutdown, encode

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")


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
