"""A worker never outlives its daemon, however the daemon goes, and says why it could not start."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import leaks
from support.spawned_worker import COMMAND, Daemon, Worker
from support.tiny import tiny_llama

from muxd.link import fds
from muxd.link.exits import Exit
from muxd.messages import Ready, Shutdown

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def test_a_closed_socket_ends_a_worker_that_waits_for_its_setup(worker: Worker) -> None:
    worker.sock.close()
    assert worker.ended(10) == (Exit.ORPHANED, "")


def test_a_closed_socket_ends_a_worker_that_waits_for_commands(tmp_path: Path) -> None:
    async def scene() -> None:
        daemon, worker = Daemon(tiny_llama(tmp_path)), Worker()
        try:
            worker.hand_over(daemon)
            assert isinstance(await daemon.next(), Ready)
            worker.sock.close()
            assert worker.ended(5)[0] == Exit.ORPHANED
        finally:
            worker.close()
            daemon.close()

    asyncio.run(scene())


# Plays a daemon that dies while somebody else still holds its end of the socketpair: only the kernel can tell
# the worker. Sends that end, the pipe's and the worker's pid to the test.
PARENT = """
import os, signal, socket, subprocess, sys
test = socket.socket(fileno=int(sys.argv[1]))
ours, theirs = socket.socketpair()
lifeline, held = os.pipe()
worker = subprocess.Popen([*sys.argv[2:], str(theirs.fileno())], pass_fds=[theirs.fileno()])
socket.send_fds(test, [str(worker.pid).encode()], [ours.fileno(), lifeline])
signal.pause()
"""


def test_sigkill_of_the_parent_takes_a_working_worker_with_it(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(theirs.fileno()), *COMMAND], pass_fds=[theirs.fileno()]
    )
    pid, (held, pipe), _, _ = socket.recv_fds(ours, 32, 2)
    worker = int(pid)

    async def scene() -> None:
        daemon = Daemon(tiny_llama(tmp_path))
        try:
            with socket.socket(fileno=held) as lifeline:
                fds.send(lifeline, daemon.setup, [*daemon.fds[:2], pipe])
                assert isinstance(await daemon.next(), Ready)
                parent.kill()
                assert leaks.gone(worker)
        finally:
            parent.kill()
            os.close(pipe)
            daemon.close()

    asyncio.run(scene())
    assert parent.wait(60) == -signal.SIGKILL
    ours.close()
    theirs.close()


def test_a_daemon_that_died_before_the_worker_looked_is_noticed(worker: Worker, tmp_path: Path) -> None:
    """Our end of the socket stays open."""

    async def scene() -> None:
        daemon = Daemon(tiny_llama(tmp_path))
        daemon.hang_up()
        worker.hand_over(daemon)
        daemon.close()

    asyncio.run(scene())
    assert worker.ended()[0] == Exit.ORPHANED


def test_nonsense_instead_of_a_setup_is_told_and_ends_it(worker: Worker) -> None:
    worker.sock.send(b"GET / HTTP/1.1\r\n\r\n")
    code, errors = worker.ended()
    assert code == Exit.BAD_SETUP
    assert "set-up: not a muxd message" in errors


def test_another_message_instead_of_a_setup_is_told(worker: Worker) -> None:
    fds.send(worker.sock, Shutdown())
    code, errors = worker.ended()
    assert code == Exit.BAD_SETUP
    assert "malformed Setup: " in errors


def test_a_setup_without_memory_is_told(worker: Worker, tmp_path: Path) -> None:
    async def scene() -> None:
        daemon = Daemon(tiny_llama(tmp_path))
        fds.send(worker.sock, daemon.setup, [daemon.arena.fds[0]])
        daemon.close()

    asyncio.run(scene())
    code, errors = worker.ended()
    assert code == Exit.BAD_SETUP
    assert "it came with 1 descriptors instead of pool, weights, lifeline" in errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to use")
def test_a_gpu_that_torch_cannot_use_is_told(worker: Worker, tmp_path: Path) -> None:
    async def scene() -> tuple[int, str]:
        daemon = Daemon(tiny_llama(tmp_path))
        worker.hand_over(daemon, device="cuda:0")
        ended = worker.ended()
        daemon.close()
        return ended

    code, errors = asyncio.run(scene())
    assert code == Exit.BAD_SETUP
    assert "device cuda:0: torch " in errors


@pytest.mark.parametrize("number", ["999", "0"])
def test_started_by_hand_it_says_who_starts_workers(number: str) -> None:
    with open(os.devnull) as null:
        done = subprocess.run([*COMMAND, number], stdin=null, capture_output=True, text=True, timeout=60)
    assert done.returncode == Exit.BAD_SETUP
    assert "the daemon starts workers" in done.stderr


SETTLING = """
import os, signal, sys
from muxd.link import lifeline
lifeline.tie(os.pipe()[0])
lifeline.settle_first(lambda: None)
print("ready", flush=True)
while True:
    signal.pause()
"""


def test_signals_that_come_while_one_is_handled_do_not_hold_up_the_end() -> None:
    """On a GPU the kernel and the lifeline both send SIGTERM, and the second may come at any instruction."""
    for _ in range(8):
        worker = subprocess.Popen([sys.executable, "-c", SETTLING], stdout=subprocess.PIPE)
        assert worker.stdout is not None
        try:
            assert worker.stdout.readline() == b"ready\n"
            for _ in range(500):
                worker.send_signal(signal.SIGTERM)  # none once it has ended
            assert worker.wait(60) == -signal.SIGTERM
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
