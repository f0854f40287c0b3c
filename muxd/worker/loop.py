"""One reply for each command, in their order, until told to stop. Runs in the worker's main thread; knows no
tensors.

A decode step that arrives while another runs begins at once where the runner can run ahead: then the device
has its next work when it is done with this one, and the daemon hears of it meanwhile.
"""

import logging
import os
import time
from typing import Protocol

from muxd.errors import MuxdError
from muxd.link.exits import Exit
from muxd.link.fds import WireError
from muxd.messages import (
    BatchDone,
    BatchFailed,
    Decode,
    FromWorker,
    MapPool,
    Prefill,
    Shutdown,
    ToWorker,
    Unmapped,
    UnmapPool,
)

log = logging.getLogger(__name__)

Command = Prefill | Decode | MapPool | UnmapPool


class Batch(Protocol):
    """``muxd.worker.runner.Batch``."""

    number: int

    def ready(self) -> bool: ...

    def finish(self, after: float = ..., /) -> BatchDone: ...


class BatchRunner(Protocol):
    """Executes batches: ``muxd.worker.runner.Runner``."""

    ahead: bool

    def begin(self, command: Prefill | Decode, /) -> Batch: ...


class Growing(Protocol):
    """The pool's memory, as it comes and goes: ``muxd.worker.growth.Growth``."""

    def handle(self, command: MapPool | UnmapPool, /) -> Unmapped | None: ...


class Link(Protocol):
    """``muxd.link.worker_end.WorkerEnd``."""

    def receive(self) -> ToWorker: ...

    def poll(self) -> ToWorker | None: ...

    def send(self, message: FromWorker, /) -> None: ...


class _Failed(Exception):
    """A batch raised. Which sequences were advanced is unknown: no next batch could be trusted."""


def serve(link: Link, runner: BatchRunner, growth: Growing) -> Exit:
    """Serve commands in their order; returns the code to exit with."""
    loop = _Loop(link, runner, growth)
    try:
        while (command := loop.next()) is not None:
            loop.take(command)
        loop.finish()
    except WireError as error:
        log.error("%s", error)
        return Exit.BAD_MESSAGE
    except _Failed:
        return Exit.FAILED
    except (MuxdError, EOFError, OSError) as error:
        log.error("the pool could not be mapped as told: %s", error)
        return Exit.FAILED
    return Exit.OK


class _Loop:
    """At most one batch runs, and while a new one begins, two."""

    def __init__(self, link: Link, runner: BatchRunner, growth: Growing):
        self._link, self._runner, self._growth = link, runner, growth
        self._running: Batch | None = None
        self._decoding = False
        self._done = 0.0  # when the last batch was

    def next(self) -> Command | None:
        """The next command; None to stop. Finishes what is running as soon as it is ready."""
        while self._running is not None:
            # A command that is here goes to the device before the tokens of the last one are looked at.
            command = self._link.poll() if self._runner.ahead else None
            if command is not None:
                break
            if not self._runner.ahead or self._running.ready():
                self.finish()
            else:
                os.sched_yield()  # as CUDA itself waits: a nap would be longer than a small model's step
        else:
            command = self._link.receive()
        return None if isinstance(command, Shutdown) else command

    def take(self, command: Command) -> None:
        """Begin it, behind what is running where both are decode steps."""
        if isinstance(command, MapPool | UnmapPool):
            self.finish()  # what runs may still use what is to go
            if (answer := self._growth.handle(command)) is not None:
                self._link.send(answer)
            return
        decoding = isinstance(command, Decode)
        if not (decoding and self._decoding and self._runner.ahead):
            self.finish()
        try:
            begun = self._runner.begin(command)
        except Exception as error:
            self._fail(command.batch, error)
        self.finish()
        self._running, self._decoding = begun, decoding

    def finish(self) -> None:
        """Wait for what is running, if anything is, and reply."""
        running, self._running = self._running, None
        if running is None:
            return
        try:
            done = running.finish(self._done)
        except Exception as error:
            self._fail(running.number, error)
        self._done = time.perf_counter()
        self._link.send(done)

    def _fail(self, batch: int, error: Exception) -> None:
        log.exception("batch %d failed", batch)
        self._link.send(BatchFailed(batch, _brief(error)))
        raise _Failed from error


def _brief(error: Exception) -> str:
    """One short line. Safe to log: this process holds token ids and tensors, never a user's text."""
    first = str(error).partition("\n")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
