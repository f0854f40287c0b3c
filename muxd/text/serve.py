"""The other end: a process that does one job after the other and ends with the daemon.

Its memory is limited, so that a job ends this process and not the machine; what a large job leaves behind
ends with it too.
"""

import argparse
import faulthandler
import logging
import resource
import socket
import traceback
from collections.abc import Callable

from muxd.errors import MuxdError
from muxd.link import lifeline
from muxd.link.exits import STACKS
from muxd.text.work import LENGTH, READY, Defect, Doing, Refusal, Result, Stage, Work, decode_work, framed

Handle = Callable[[Work, Callable[[Stage], None]], Result]


def run(handle: Handle, argv: list[str] | None = None) -> int:
    """``handle`` does a job and says on the way how far it is. Returns when the daemon is gone."""
    parser = argparse.ArgumentParser(description="text work for muxd, which starts it")
    parser.add_argument("--fd", type=int, required=True, help="inherited end of a Unix socketpair")
    parser.add_argument("--lifeline", type=int, required=True, help="inherited reading end of a pipe")
    parser.add_argument("--memory", type=int, required=True, help="bytes of addresses it may have")
    given = parser.parse_args(argv)
    sock = socket.socket(fileno=given.fd)
    faulthandler.register(STACKS)
    lifeline.hold(sock)
    lifeline.tie(given.lifeline)  # a template may hold the interpreter for ever
    lifeline.set_title("text")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    resource.setrlimit(resource.RLIMIT_AS, (given.memory, given.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold prompts
    with sock.makefile("rwb", buffering=1 << 16) as wire:
        wire.write(READY)
        wire.flush()
        while head := wire.read(LENGTH.size):
            work = decode_work(wire.read(LENGTH.unpack(head)[0]))

            def at(stage: Stage) -> None:
                wire.write(framed(Doing(stage)))
                wire.flush()

            at("read")
            wire.write(framed(_result(handle, work, at)))
            wire.flush()
            del work
            if _resident() > given.memory // 2:
                return 0  # the next one begins small
    return 0


def _result(handle: Handle, work: Work, at: Callable[[Stage], None]) -> Result:
    """Raises MemoryError, which ends the process: it is not known what else is missing now."""
    try:
        return handle(work, at)
    except MuxdError as error:
        return Refusal(type(error).__name__, error.message, error.param, error.code)
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        stack = "".join(traceback.format_tb(error.__traceback__))
        return Defect(type(error).__name__, stack)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
