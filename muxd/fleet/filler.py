"""``python -m muxd.fleet.filler --fd N --lifeline M``: a process that reads one model's weights.

A process and not a thread of the daemon: it is behind everybody while others have streams (``fleet.filling``
puts it there), and a thread of the daemon that waits for a core while it has the interpreter's
lock keeps the loop waiting, and so all streams. ``N`` is one end of a socketpair on which ``fleet.filling``
sends a ``Filling`` with the region's descriptor, and hears of each piece, and of the end.
"""

import argparse
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from muxd.device.base import RegionPlace
from muxd.device.behind import IdleThread
from muxd.device.writing import writer
from muxd.errors import ModelFolderError, MuxdError
from muxd.link import fds, lifeline
from muxd.models.weights import WeightPlan, filling
from muxd.text.work import framed


class Filling(Struct, frozen=True, tag="filling"):
    """``plan``: a ``WeightPlan``, by ``packed``."""

    plan: bytes
    place: RegionPlace


class Filled(Struct, frozen=True, tag="filled"):
    """So many bytes of the region are; with ``done`` all that is wanted."""

    nbytes: int
    done: bool = False


class Unfilled(Struct, frozen=True, tag="unfilled"):
    """Why it cannot be; ``folder``: it is the model folder's fault."""

    message: str
    folder: bool


Told = Filled | Unfilled
decode = msgspec.msgpack.Decoder(Told).decode


def packed(plan: WeightPlan) -> bytes:
    """For ``unpacked`` in another process."""
    return msgspec.msgpack.encode(plan, enc_hook=str)  # of paths


def unpacked(data: bytes) -> WeightPlan:
    def path(kind: type, value: Any) -> Path:
        return Path(value)

    return msgspec.msgpack.decode(data, type=WeightPlan, dec_hook=path)


def main(argv: list[str] | None = None) -> int:
    """Fill one region."""
    parser = argparse.ArgumentParser(prog="python -m muxd.fleet.filler", description="reads weights")
    parser.add_argument("--fd", type=int, required=True, help="inherited end of a Unix socketpair")
    parser.add_argument("--lifeline", type=int, required=True, help="inherited reading end of a pipe")
    given = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGHUP):  # of a terminal to the whole group; the daemon decides
        signal.signal(number, signal.SIG_IGN)
    lifeline.tie(given.lifeline)
    lifeline.set_title("weights")
    with socket.socket(fileno=given.fd) as sock:
        order, (region,) = fds.receive(sock, Filling)
        sock.sendall(framed(_fill(order, region, sock)))
    return 0


def _fill(order: Filling, region: int, sock: socket.socket) -> Told:
    plan, nbytes, idle_thread = unpacked(order.plan), 0, IdleThread()
    try:
        with writer(order.place, region) as into:
            steps = filling(plan, into)
            while (piece := idle_thread.run(lambda: next(steps, None))) is not None:
                nbytes += piece
                sock.sendall(framed(Filled(nbytes)))
    except MuxdError as error:
        return Unfilled(error.message, isinstance(error, ModelFolderError))
    finally:
        idle_thread.close()
    return Filled(nbytes, done=True)


if __name__ == "__main__":
    sys.exit(main())
