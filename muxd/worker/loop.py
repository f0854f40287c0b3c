"""One command, one reply, until told to stop. Runs in the worker's main thread; knows no tensors."""

import logging
from typing import Protocol

from muxd.link.exits import Exit
from muxd.link.fds import WireError
from muxd.link.worker_end import WorkerEnd
from muxd.messages import BatchDone, BatchFailed, Decode, Prefill, Shutdown

log = logging.getLogger(__name__)


class BatchRunner(Protocol):
    """Executes batches: ``muxd.worker.runner.Runner``."""

    def prefill(self, command: Prefill, /) -> BatchDone: ...

    def decode(self, command: Decode, /) -> BatchDone: ...


def serve(link: WorkerEnd, runner: BatchRunner) -> Exit:
    """Serve commands in their order; returns the code to exit with."""
    while True:
        try:
            command = link.receive()
        except WireError as error:
            log.error("%s", error)
            return Exit.BAD_MESSAGE
        if isinstance(command, Shutdown):
            return Exit.OK
        try:
            done = runner.prefill(command) if isinstance(command, Prefill) else runner.decode(command)
        except Exception as error:
            # Which sequences were advanced is unknown: no next batch could be trusted.
            log.exception("batch %d failed", command.batch)
            link.send(BatchFailed(command.batch, _brief(error)))
            return Exit.FAILED
        link.send(done)


def _brief(error: Exception) -> str:
    """One short line. Safe to log: this process holds token ids and tensors, never a user's text."""
    first = str(error).partition("\n")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
