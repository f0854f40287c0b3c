"""On a GPU a worker ends only when its device is at rest, whoever ends it; shown without a GPU."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support import leaks

from muxd.link.exits import Exit

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")

# Says "held" when it is set up and "settled" from within ``settle``. "stuck": the device never comes to rest.
WORKER = """
import os, socket, sys, threading
from muxd.link import lifeline
sock, said, stuck = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3] == "stuck"
lifeline.hold(sock)
lifeline.tie(int(sys.argv[4]))
def settle():
    os.write(said, b"settled\\n")
    if stuck:
        threading.Event().wait()
lifeline.settle_first(settle, grace=0.2)
os.write(said, b"held\\n")
threading.Event().wait()
"""
# A daemon that dies: the kernel's signal and the socket's end both tell, and it settles once.
PARENT = """
import os, signal, socket, subprocess, sys
ours, theirs = socket.socketpair()
lifeline, held = os.pipe()
worker = subprocess.Popen(
    [sys.executable, "-P", "-c", sys.argv[2], str(theirs.fileno()), sys.argv[1], "sound", str(lifeline)],
    pass_fds=[theirs.fileno(), int(sys.argv[1]), lifeline],
)
theirs.close()
print(worker.pid, flush=True)
signal.pause()
"""


class Worker:
    def __init__(self, kind: str):
        self.sock, theirs = socket.socketpair()
        heard, says = os.pipe()
        lifeline, self._held = os.pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", WORKER, str(theirs.fileno()), str(says), kind, str(lifeline)],
                pass_fds=[theirs.fileno(), says, lifeline],
            )
        os.close(says)
        os.close(lifeline)
        self.heard = os.fdopen(heard)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.heard.close()
        self.sock.close()
        os.close(self._held)


@pytest.fixture(params=["sound"])
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    worker = Worker(request.param)
    assert worker.heard.readline() == "held\n"
    yield worker
    worker.close()


def test_sigterm_settles_and_is_still_what_ended_it(worker: Worker) -> None:
    worker.process.terminate()
    assert worker.process.wait(60) == -signal.SIGTERM
    assert worker.heard.read() == "settled\n"


def test_a_closed_socket_settles_first(worker: Worker) -> None:
    worker.sock.close()
    assert worker.process.wait(60) == Exit.ORPHANED
    assert worker.heard.read() == "settled\n"


@pytest.mark.parametrize("worker", ["stuck"], indirect=True)
def test_a_device_that_never_rests_is_given_up_when_the_daemon_is_gone(worker: Worker) -> None:
    worker.sock.close()
    assert worker.process.wait(60) == Exit.ORPHANED


def test_sigkill_of_the_daemon_settles_too() -> None:
    heard, says = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(says), WORKER], pass_fds=[says], stdout=subprocess.PIPE, text=True
    )
    os.close(says)
    with os.fdopen(heard) as said, parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert said.readline() == "held\n"
        parent.kill()
        assert said.read() == "settled\n"
        assert leaks.gone(pid)
