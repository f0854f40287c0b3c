"""``python -m muxd.worker.zygote --fd N --lifeline M``: a process that has imported torch and forks workers.

Importing torch costs a worker 1.5 CPU seconds and 150 MiB; a fork costs milliseconds and shares the pages.
To fork a process that runs asyncio, OpenMP or CUDA is unsafe, so this one is exec'd, has one thread (it looks
before each fork) and computes nothing: it touches no tensor and no GPU's driver. What a worker must be told
before its first call of torch (environment, CPUs, threads) is set after the fork.

``N`` is one end of a SOCK_SEQPACKET pair on which ``fleet.zygote`` asks, one answer for each request; the
pipe ``M`` hangs up when the daemon is gone.
"""

import argparse
import gc
import importlib
import os
import signal
import socket
import sys
from typing import NamedTuple

from muxd.link import fds, lifeline
from muxd.link.exits import Exit
from muxd.messages import Ended, Fork, Forked, NotForked, ToZygote
from muxd.worker import __main__ as worker

TITLE = "zygote"
_WORKER = ("torch", "muxd.worker.growth", "muxd.worker.loop", "muxd.worker.memory", "muxd.worker.runner")
_KERNELS = ("triton", "triton.language")


class Child(NamedTuple):
    """In a forked process: what it was asked to be."""

    environment: dict[str, str]
    control: int


def main(argv: list[str] | None = None) -> int:
    """Fork until the daemon hangs up. In a child: the life of a worker."""
    parser = argparse.ArgumentParser(prog="python -m muxd.worker.zygote", description="forks workers")
    parser.add_argument("--fd", type=int, required=True, help="inherited end of a socketpair of packets")
    parser.add_argument("--lifeline", type=int, required=True, help="inherited reading end of a pipe")
    parser.add_argument("--kernels", action="store_true", help="workers will run kernels on a GPU")
    given = parser.parse_args(argv)
    # Those of a terminal are the daemon's to handle; whoever asks a group of processes for their stacks does
    # not want to end those that have none to show.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    lifeline.tie(given.lifeline)
    lifeline.set_title(TITLE)
    _import(kernels=given.kernels)
    with socket.socket(fileno=given.fd) as sock:
        child = _serve(sock)
    if child is None:
        return 0
    os.close(given.lifeline)
    os.environ.update(child.environment)
    code = worker.run(socket.socket(fileno=child.control))
    if code == Exit.OK:
        # Nothing is under way, and all is said. To take the interpreter apart would write to every page that
        # the zygote shares: a third of a second's work, for which whoever unloads or stops a model waits.
        sys.stdout.flush()
        os._exit(code)
    return code


def _import(*, kernels: bool) -> None:
    gc.disable()  # what modules make stays: looking through it again and again takes a sixth of the start
    for name in _WORKER:
        importlib.import_module(name)
    if kernels:
        try:
            for name in _KERNELS:
                importlib.import_module(name)
        except ImportError:
            pass  # a worker that needs them says so
    gc.collect()
    gc.freeze()  # a collection in a child would write to the pages of all that was imported, and so copy them
    gc.enable()


def _serve(sock: socket.socket) -> Child | None:
    """Answer requests. Returns None when the daemon has hung up, and in every forked process a ``Child``."""
    while True:
        try:
            request, passed = fds.receive(sock, ToZygote)
        except EOFError:
            return None
        except fds.WireError as error:
            fds.send(sock, NotForked(0, error.message))
            continue
        if not isinstance(request, Fork):
            fds.send(sock, Ended(_reap(request.pid)))
        elif child := _fork(sock, request, passed):
            return child


def _fork(sock: socket.socket, request: Fork, passed: list[int]) -> Child | None:
    try:
        if (count := len(os.listdir("/proc/self/task"))) != 1:
            fds.send(sock, NotForked(0, f"the zygote has {count} threads: a fork would not be safe"))
            return None
        (control,) = passed
        if (pid := os.fork()) == 0:
            passed.clear()
            return Child(request.environment, control)
        _answer(sock, pid)
    except OSError as error:
        fds.send(sock, NotForked(error.errno or 0, error.strerror or str(error)))
    finally:
        for fd in passed:
            os.close(fd)
    return None


def _answer(sock: socket.socket, pid: int) -> None:
    """The descriptor is made here, where nobody else can have reaped ``pid``."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        _reap(pid)
        raise
    fds.send(sock, Forked(pid), [pidfd])
    os.close(pidfd)


def _reap(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
