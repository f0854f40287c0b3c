"""The pool's memory as it comes and goes: between two batches, at addresses that were reserved before."""

import os
import socket

from muxd.device.reservation import Reservation
from muxd.link import fds
from muxd.messages import MapPool, Unmapped, UnmapPool


class Growth:
    """``sock``: where the daemon's descriptors come from; ``space``: the pool's addresses."""

    def __init__(self, sock: socket.socket, space: Reservation, worker: str):
        self._sock, self._space, self._worker = sock, space, worker

    def handle(self, command: MapPool | UnmapPool) -> Unmapped | None:
        """Raises MappingError, WireError and EOFError where that cannot be done."""
        if isinstance(command, UnmapPool):
            self._space.unmap(command.offset)
            return Unmapped(self._worker, command.offset)
        told, received = fds.receive(self._sock, MapPool)
        try:
            if told != command or len(received) != 1:
                raise fds.WireError(f"{command} was announced, {told} with {len(received)} descriptors came")
            self._space.map(command.offset, received[0], command.nbytes)
        finally:
            for fd in received:
                os.close(fd)
        return None
