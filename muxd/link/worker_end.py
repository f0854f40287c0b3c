"""The worker's end of the wire: a blocking ZeroMQ DEALER. Used by the worker's main thread only."""

import os

import zmq

from muxd.link.fds import WireError
from muxd.messages import UNREADABLE, BatchDone, FromWorker, RankDone, ToWorker, decode_to_worker, encode

_LINGER_MS = 2000  # a last word (Refused, BatchFailed) still goes out; a dead daemon does not hold us


class WorkerEnd:
    """Connected to the daemon's ROUTER under the name ``worker``. ``follows``: it is a rank whose answers
    the first one gives; it only says what it has sampled."""

    def __init__(self, endpoint: str, worker: str, *, follows: bool = False):
        self._follows = follows
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.ROUTING_ID, worker.encode())
        self._socket.connect(endpoint)

    def receive(self) -> ToWorker:
        """Wait for the next command. Raises WireError when it cannot be read."""
        return self._read(self._socket.recv())

    def poll(self) -> ToWorker | None:
        """The next command if it is here. Raises WireError when it cannot be read."""
        return self._read(self._socket.recv()) if self._socket.poll(0) else None

    def wait(self, seconds: float) -> None:
        """Until a command is here, but not for so long: a nap may last longer than it was to. What is left of
        it is given to whoever wants the core."""
        if (whole := int(seconds * 1000) - 1) > 0:
            self._socket.poll(whole)
        else:
            os.sched_yield()

    def _read(self, data: bytes) -> ToWorker:
        try:
            command: ToWorker = decode_to_worker(data)
        except UNREADABLE as error:
            raise WireError(f"malformed command of {len(data)} bytes: {error}") from None
        return command

    def send(self, message: FromWorker) -> None:
        """Post a reply; never waits for the daemon."""
        if self._follows and isinstance(message, BatchDone):
            message = RankDone(message.batch, message.tokens)
        self._socket.send(encode(message))

    def close(self) -> None:
        """Deliver what was sent, for at most two seconds, and disconnect."""
        self._context.destroy(linger=_LINGER_MS)
