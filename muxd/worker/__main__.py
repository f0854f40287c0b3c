"""One model in a process of its own, forked by ``muxd.worker.zygote``, or by hand:
``python -m muxd.worker --fd N`` with ``muxd.device.cpu.worker_env`` in the environment.

``N`` is one end of a socketpair on which ``Setup`` and the descriptors ``[pool, weights, lifeline]`` arrive.
The order below is the worker's biography. Exit codes: ``muxd.link.exits``. SIGTERM ends it at once (nothing
here needs saving), on a GPU when the running batch is done; SIGINT and SIGHUP are ignored; ``STACKS`` tells
where it stands.
"""

import argparse
import faulthandler
import logging
import os
import socket
import sys
import time

from muxd.device.behind import aside
from muxd.errors import MuxdError
from muxd.link import fds, lifeline
from muxd.link.exits import STACKS, Exit
from muxd.link.worker_end import WorkerEnd
from muxd.messages import Ready, Refused, Setup

log = logging.getLogger("muxd.worker")


def main(argv: list[str] | None = None) -> Exit:
    """Run a worker to its end."""
    parser = argparse.ArgumentParser(prog="python -m muxd.worker", description="one model, one process")
    parser.add_argument("--fd", type=int, required=True, help="inherited end of a Unix socketpair")
    try:
        sock = socket.socket(fileno=parser.parse_args(argv).fd)
    except OSError as error:
        print(
            f"muxd.worker: --fd is no socket ({error.strerror}); the daemon starts workers", file=sys.stderr
        )
        return Exit.BAD_SETUP
    return run(sock)


def run(sock: socket.socket) -> Exit:
    """A worker's life; the daemon is at the other end of ``sock``."""
    lifeline.hold(sock)
    faulthandler.register(STACKS)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        setup, received = fds.receive(sock, Setup)
    except EOFError:
        return Exit.ORPHANED
    except fds.WireError as error:
        log.error("set-up: %s", error)
        return Exit.BAD_SETUP
    if len(received) != len(Setup.DESCRIPTORS):
        wanted = ", ".join(Setup.DESCRIPTORS)
        log.error("set-up: it came with %d descriptors instead of %s", len(received), wanted)
        return Exit.BAD_SETUP
    lifeline.tie(received.pop())
    lifeline.set_title(setup.model)
    # ``sock`` stays referenced until the end: the lifeline polls it, and memory may still come over it.
    return _work(setup, received, sock)


def _work(setup: Setup, received: list[int], sock: socket.socket) -> Exit:
    """Map, build, warm up, serve. torch is imported only here, when the lifeline already holds."""
    if setup.cpus:
        os.sched_setaffinity(0, setup.cpus)  # before torch: its threads inherit it
    import torch

    from muxd.worker.growth import Growth
    from muxd.worker.loop import serve
    from muxd.worker.memory import map_regions
    from muxd.worker.ranks import leave
    from muxd.worker.runner import Runner

    if setup.device != "cpu":
        lifeline.settle_first(torch.cuda.synchronize)
    try:
        pool, space, weights, view = map_regions(setup, received)
    except (MuxdError, OSError) as error:
        log.error("set-up: %s", error)
        return Exit.BAD_SETUP
    link = WorkerEnd(setup.link, setup.worker, follows=setup.rank > 0)

    def rehearsed() -> tuple[Runner, float, float]:
        began = time.monotonic()
        made = Runner(setup, pool, weights)
        loaded = time.monotonic()
        made.warm_up()
        return made, loaded - began, time.monotonic() - loaded

    try:
        runner, building, warming = aside(rehearsed) if setup.aside else rehearsed()
        link.send(
            Ready(setup.worker, os.getpid(), str(torch.__version__), building, warming, view.mps, view.sms)
        )
        ended = serve(link, runner, Growth(sock, space, setup.worker))
        if ended is Exit.OK:
            leave()
        return ended
    except MuxdError as error:
        link.send(Refused(setup.worker, error.message))
        return Exit.REFUSED
    finally:
        link.close()


if __name__ == "__main__":
    sys.exit(main())
