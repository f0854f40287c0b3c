"""The daemon's end of the wire with a queue behind it, and workers at the other end."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from muxd.link.daemon_end import DaemonEnd
from muxd.link.worker_end import WorkerEnd
from muxd.messages import BatchDone, Decode, FromWorker, NewRows, Ready, Shutdown


class Ear:
    """Puts what it hears of a worker into a queue."""

    def __init__(self, worker: str, events: "asyncio.Queue[tuple[str, FromWorker | str]]"):
        self.worker, self.events = worker, events

    def on_message(self, message: FromWorker) -> None:
        self.events.put_nowait((self.worker, message))

    def on_lost(self, reason: str) -> None:
        self.events.put_nowait((self.worker, reason))


class Bench:
    """A daemon end whose callbacks fill a queue, in a directory of its own."""

    def __init__(self, directory: Path):
        self.events: asyncio.Queue[tuple[str, FromWorker | str]] = asyncio.Queue()
        self.end = DaemonEnd(directory)

    def announce(self, worker: str) -> None:
        self.end.announce(worker, Ear(worker, self.events))

    async def next(self) -> tuple[str, FromWorker | str]:
        return await asyncio.wait_for(self.events.get(), 60)


def ready(worker: str) -> Ready:
    return Ready(worker, 1, "2", 0.0, 0.0)


def command(batch: int) -> Decode:
    return Decode(batch, 100, NewRows(), [1], [], [])


def echo_worker(endpoint: str, worker: str) -> threading.Thread:
    """A worker end in a thread: says Ready, answers each Decode with its number, stops at Shutdown."""

    def body() -> None:
        link = WorkerEnd(endpoint, worker)
        link.send(ready(worker))
        while isinstance(message := link.receive(), Decode):
            link.send(BatchDone(message.batch, [message.batch], 0.0))
        assert isinstance(message, Shutdown)
        link.close()

    thread = threading.Thread(target=body)
    thread.start()
    return thread


Play = Callable[[Callable[[Bench], Awaitable[None]]], None]
