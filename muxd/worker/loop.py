"""One reply for each command, until told to stop. Runs in the worker's main thread; knows no tensors.

Batches of a device that queues are under way together: a prefill, and beside it a decode step with the next
one behind it. Each begins when its command is here, so that the device always has its next work, and is told
of when it is done: prefills in their order and steps in theirs, and a step does not wait for the prefill
beside it. Nor does it wait while that is asked for: some milliseconds of launches, layer by layer, between
which steps begin and end.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Set
from typing import NamedTuple, NoReturn, Protocol

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
from muxd.worker.pace import Pace

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

    def weave(self, between: Callable[[], None], /) -> None: ...


class Growing(Protocol):
    """The pool's memory, as it comes and goes: ``muxd.worker.growth.Growth``."""

    def handle(self, command: MapPool | UnmapPool, /) -> Unmapped | None: ...


class Link(Protocol):
    """``muxd.link.worker_end.WorkerEnd``."""

    def receive(self) -> ToWorker: ...

    def poll(self) -> ToWorker | None: ...

    def wait(self, seconds: float, /) -> None: ...

    def send(self, message: FromWorker, /) -> None: ...


class _Failed(Exception):
    """A batch raised. Which sequences were advanced is unknown: no next batch could be trusted."""


def serve(link: Link, runner: BatchRunner, growth: Growing) -> Exit:
    """Serve commands, begun in their order; returns the code to exit with."""
    loop = _Loop(link, runner, growth)
    try:
        while (command := loop.next()) is not None:
            loop.take(command)
        loop.finish_all()
    except WireError as error:
        log.error("%s", error)
        return Exit.BAD_MESSAGE
    except _Failed:
        return Exit.FAILED
    except (MuxdError, EOFError, OSError) as error:
        log.error("the pool could not be mapped as told: %s", error)
        return Exit.FAILED
    return Exit.OK


class _Begun(NamedTuple):
    """``size``: what the batch is a multiple of, see ``Pace``; ``seqs``: the sequences in it."""

    batch: Batch
    size: int
    seqs: frozenset[int]


class _UnderWay:
    """The batches of one phase that are under way, in the order in which the device computes them."""

    def __init__(self) -> None:
        self.batches: deque[_Begun] = deque()
        self.done = 0.0  # when the last one was
        self.began = 0.0  # when the first one of those under way could begin
        self.pace = Pace()

    def add(self, batch: Batch, size: int, seqs: Iterable[int]) -> None:
        if not self.batches:
            self.began = time.perf_counter()
        self.batches.append(_Begun(batch, size, frozenset(seqs)))

    @property
    def first(self) -> Batch:
        return self.batches[0].batch

    def has(self, seqs: Set[int]) -> bool:
        """Some of them are in a batch."""
        return any(not one.seqs.isdisjoint(seqs) for one in self.batches)

    def finish(self) -> BatchDone:
        """Wait for the first one."""
        done = self.first.finish(self.done)
        self.done = self.began = time.perf_counter()
        self.pace.learn(self.batches.popleft().size, done.seconds)
        return done

    def left(self, now: float) -> float:
        """Seconds that the first one takes at least from ``now`` on, by those before it."""
        return self.began + self.pace.expected(self.batches[0].size) - now


class _Loop:
    def __init__(self, link: Link, runner: BatchRunner, growth: Growing):
        self._link, self._runner, self._growth = link, runner, growth
        self._steps, self._prefills = _UnderWay(), _UnderWay()
        self._queues = (self._steps, self._prefills)  # a step that is done is told of first
        self._held: Command | Shutdown | None = None  # came while a prefill was asked for, and is no step
        if runner.ahead:
            runner.weave(self._between)

    def next(self) -> Command | None:
        """The next command; None to stop. Tells of what is done as soon as it is."""
        while under_way := [queue for queue in self._queues if queue.batches]:
            # A command that is here goes to the device before the tokens of the last one are looked at.
            if (command := self._poll()) is not None:
                break
            done = next((queue for queue in under_way if self._ready(queue)), None)
            if done is not None:
                self._finish(done)
            else:
                now = time.perf_counter()
                self._link.wait(min(queue.left(now) for queue in under_way))
        else:
            command = self._poll() or self._link.receive()
        return None if isinstance(command, Shutdown) else command

    def _poll(self) -> Command | Shutdown | None:
        """What is here, in the order in which it came."""
        held, self._held = self._held, None
        return held or (self._link.poll() if self._runner.ahead else None)

    def _between(self) -> None:
        """A part of a prefill has been asked for: steps go on, up to the next command that is none."""
        while self._steps.batches and self._ready(self._steps):
            self._finish(self._steps)
        while self._held is None and (command := self._link.poll()) is not None:
            if isinstance(command, Decode):
                self._begin(command)
            else:
                self._held = command

    def take(self, command: Command) -> None:
        """Begin it beside what is under way, if the device queues; memory comes and goes when nothing is."""
        if isinstance(command, MapPool | UnmapPool):
            self.finish_all()  # what runs may still use what is to go
            if (answer := self._growth.handle(command)) is not None:
                self._link.send(answer)
            return
        if not self._runner.ahead:
            self.finish_all()
        self._begin(command)

    def _begin(self, command: Prefill | Decode) -> None:
        self._settle(command)
        try:
            begun = self._runner.begin(command)
        except (_Failed, WireError):  # of what has begun or came between
            raise
        except Exception as error:
            self._fail(command.batch, error)
        if isinstance(command, Decode):
            self._steps.add(begun, 1, command.seqs)
        else:
            size = sum(len(chunk.tokens) for chunk in command.chunks)
            self._prefills.add(begun, size, [chunk.seq for chunk in command.chunks])

    def _settle(self, command: Prefill | Decode) -> None:
        """Of a mesh the first rank's answers are enough for the daemon: another one may be told to forget
        sequences, or to step those whose prompts are read, before it has looked at batches of its own that
        are as good as done."""
        gone = frozenset(command.forget)
        stepped = frozenset(command.seqs) if isinstance(command, Decode) else frozenset[int]()
        for queue, seqs in ((self._steps, gone), (self._prefills, gone | stepped)):
            while queue.has(seqs):
                self._finish(queue)

    def finish_all(self) -> None:
        """Wait for what is under way, if anything is, and reply."""
        for queue in self._queues:
            while queue.batches:
                self._finish(queue)

    def _ready(self, queue: _UnderWay) -> bool:
        try:
            return not self._runner.ahead or queue.first.ready()
        except Exception as error:  # of the device, which may be anybody's
            self._fail(queue.first.number, error)

    def _finish(self, queue: _UnderWay) -> None:
        number = queue.first.number
        try:
            done = queue.finish()
        except Exception as error:
            self._fail(number, error)
        self._link.send(done)

    def _fail(self, batch: int, error: Exception) -> NoReturn:
        log.exception("batch %d failed", batch)
        self._link.send(BatchFailed(batch, _brief(error)))
        raise _Failed from error


def _brief(error: Exception) -> str:
    """One short line. Safe to log: this process holds token ids and tensors, never a user's text."""
    first = str(error).partition("\n")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
