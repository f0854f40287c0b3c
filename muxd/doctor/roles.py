"""``python -m muxd.doctor.roles ROLE --fd N``: what a probe needs a second process for."""

import argparse
import mmap
import os
import socket
import sys
import time
from collections.abc import Callable

from muxd.device import apart
from muxd.device.cuda import Cuda
from muxd.device.driver import Driver
from muxd.device.mps import client_view
from muxd.device.reservation import CudaReservation
from muxd.doctor.peer import Answer, Ask
from muxd.errors import MuxdError
from muxd.link import fds

Serve = Callable[[Ask, list[int]], tuple[Answer, list[int]]]


def reader() -> Serve:
    """Host memory: maps the descriptor, tells its first byte, writes ``value`` there."""

    def serve(ask: Ask, received: list[int]) -> tuple[Answer, list[int]]:
        with mmap.mmap(received[0], ask.nbytes) as mapped:
            seen, mapped[0] = mapped[0], ask.value
        return Answer({"first": float(seen)}), []

    return serve


def importer() -> Serve:
    """Device memory: maps the descriptor, tells its first and last byte, fills all of it with ``value``."""
    driver = Driver()
    driver.retain()

    def serve(ask: Ask, received: list[int]) -> tuple[Answer, list[int]]:
        space = CudaReservation(driver, ask.nbytes)
        began = time.perf_counter()
        space.map(0, received[0], ask.nbytes)
        took = time.perf_counter() - began
        seen = {
            "first": float(driver.to_host(space.address, 1)[0]),
            "last": float(driver.to_host(space.address + ask.nbytes - 1, 1)[0]),
        }
        driver.fill_bytes(space.address, ask.value, ask.nbytes)
        driver.synchronize()
        space.close()
        return Answer({**seen, "map_seconds": took}), []

    return serve


def exporter() -> Serve:
    """Allocates device memory full of ``value`` and hands out its descriptor."""
    cuda = Cuda()

    def serve(ask: Ask, received: list[int]) -> tuple[Answer, list[int]]:
        region = cuda.allocate(ask.nbytes, "pool")
        with region.writer() as writer:
            writer.window(0, ask.nbytes)[:] = ask.value
        return Answer(), [region.fd]

    return serve


def client() -> Serve:
    """A CUDA process: tells whether it is a client of MPS, and how many SMs it has."""
    driver = Driver()
    driver.retain()
    view = client_view(driver)
    return lambda ask, received: (Answer({"mps": float(view.mps), "sms": float(view.sms)}), [])


def parts() -> Serve:
    """Makes the contexts and tells the SMs that kernels were seen on, part by part."""
    seen, granted = apart.measure(Driver())
    sizes = {f"part{part}": float(count) for part, count in enumerate(granted)}
    answer = Answer(sizes, [sorted(part) for part in seen])
    return lambda ask, received: (answer, [])


ROLES: dict[str, Callable[[], Serve]] = {
    role.__name__: role for role in (reader, importer, exporter, client, parts)
}


def main(argv: list[str] | None = None) -> int:
    """Answer until the probe hangs up; an error is an answer too."""
    parser = argparse.ArgumentParser(
        prog="python -m muxd.doctor.roles", description="a probe's second process"
    )
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--fd", type=int, required=True)
    given = parser.parse_args(argv)
    sock = socket.socket(fileno=given.fd)
    serve: Serve | None = None
    while True:
        try:
            ask, received = fds.receive(sock, Ask)
        except EOFError:
            return 0
        try:
            serve = serve or ROLES[given.role]()
            answer, descriptors = serve(ask, received)
        except MuxdError as error:
            answer, descriptors = Answer(error=error.message), []
        for fd in received:
            os.close(fd)
        fds.send(sock, answer, descriptors)


if __name__ == "__main__":
    sys.exit(main())
