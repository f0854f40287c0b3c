"""A few killable processes in which chat templates run and prompts become tokens.

Both are work that a client or a model folder decides the length of, and that holds the interpreter's lock: in
the daemon it would stop every stream. A job that takes too long, or too much memory, ends with its process;
the next job finds a new one. Used by the HTTP door and by whoever loads a model.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from muxd.device.behind import only_idle
from muxd.errors import (
    BadRequest,
    ConfigError,
    ContextTooLong,
    ModelFolderError,
    MuxdError,
    TextBusy,
    TooLarge,
)
from muxd.text.process import TextProcess
from muxd.text.text_queue import TextQueue
from muxd.text.turns import Turns
from muxd.text.work import Check, Checked, Defect, Refusal, Result, Source, Stage, Unloaded, Work

_log = logging.getLogger("muxd.text")

_LEAST = 4096  # bytes that any job counts for
_RATE = 1e6  # bytes a second, until one has been seen
_BUSY = 6  # by the clock a job may take so many times its deadline,
_BEHIND = 30  # and one that loads a model, which is behind everybody
_ASIDE = 20.0  # seconds that a model's tokenizer waits for cores that nobody wants
_TICK = 0.05  # seconds between looks at what it has used
_UNWANTED = 1.0  # of its own seconds that a job nobody waits for may take: a new process costs as much
_RESPAWN = 1.0  # seconds after a process that could not be started
_PARTS = {"template": "chat template"}
_KINDS: dict[str, type[MuxdError]] = {
    kind.__name__: kind for kind in (BadRequest, ConfigError, ContextTooLong, ModelFolderError, TooLarge)
}


@dataclass(frozen=True)
class TextLimits:
    """``[text]`` of muxd.toml in bytes and seconds."""

    processes: int = 2
    memory: int = 1 << 30
    deadline: float = 10.0
    patience: float = 10.0  # for a process that is free
    budget: int = 64 << 20


@dataclass(eq=False)
class _Job:
    work: Work
    model: str
    size: int
    result: asyncio.Future[Result]
    key: str | None = None  # as of ``Texted``
    weight: float = 1.0
    stage: Stage | None = None  # None: it has not been begun

    @property
    def unwanted(self) -> bool:
        """Whoever asked has left, and it does no more what others need, too: to read a model's tokenizer."""
        return self.result.cancelled() and self.stage not in (None, "read")


@dataclass
class TextPool:
    """``module``: what ``python -m`` runs in a process. Between ``start`` and ``close`` in one event loop."""

    module: str
    limits: TextLimits = field(default_factory=TextLimits)

    def __post_init__(self) -> None:
        self.restarts = 0
        self._turns = Turns(self.limits.processes)
        self._line: TextQueue[_Job] = TextQueue(self.limits.budget)
        self._free: dict[int, asyncio.Future[_Job]] = {}
        self._processes: dict[int, TextProcess] = {}
        self._gone: defaultdict[int, list[Source]] = defaultdict(list)  # what a process is to let go of
        self._rate = _RATE
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = asyncio.Event()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes.values() if process.alive]

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._live(number)) for number in range(self.limits.processes)]

    async def close(self) -> None:
        """End all processes; what is under way is refused."""
        self._closing.set()
        for process in self._processes.values():
            process.kill()
        await asyncio.gather(*self._tasks)
        for job in list(self._line.order()):
            if not job.result.done():
                job.result.set_exception(_ended())

    async def check(self, source: Source, size: int, *, aside: bool = False) -> Checked:
        """Read the tokenizer of a model that has ``size`` tokens and compile its template; ``aside``: behind
        everybody. Raises ModelFolderError or ConfigError."""
        checked = await self.run(Check(source, size, aside), source.model, 0, key=None)
        assert isinstance(checked, Checked)
        return checked

    def forget(self, source: Source) -> None:
        """Its model serves no more: each process lets go of its tokenizer, one that is at work then later."""
        for number in self._processes:
            self._gone[number].append(source)
        for number in list(self._free):
            self._let_go(number)

    async def run(
        self, work: Work, model: str, size: int, *, key: str | None = "", weight: float = 1.0
    ) -> Result:
        """``size``: bytes it is about. ``key``, ``weight``: as of ``Texted``. Raises what the process has
        refused it with, BadRequest where the model's template takes too long or too much, TextBusy where
        there is no room or the text took too long."""
        size = max(size, _LEAST)
        loop = asyncio.get_running_loop()
        if not self._line.lets_in(key, size):
            raise TextBusy("too much text waits to be read; try again shortly", retry_after=self._wait())
        job = _Job(work, model, size, loop.create_future(), key, weight)
        self._line.add(job)
        self._match()
        give_up = None
        if not isinstance(work, Check):  # who loads a model can wait, also for the first process to start
            give_up = loop.call_later(self.limits.patience, self._give_up, job)
        try:
            result = await job.result
        finally:
            if give_up is not None:
                give_up.cancel()
            if job in self._line:  # whoever asked has left
                self._line.end(job)
        return _told(result)

    # ---- inside -----------------------------------------------------------------------------------

    def _wait(self) -> float:
        """Seconds until what is here will have been read."""
        return min(60.0, 1.0 + self._line.held / self._rate)

    def _give_up(self, job: _Job) -> None:
        if job in self._line and not job.result.done():
            job.result.set_exception(
                TextBusy(
                    f"no text process was free for {self.limits.patience:g} s; try again shortly",
                    retry_after=self._wait(),
                )
            )

    def _let_go(self, number: int) -> None:
        """To a process that is free."""
        if (sources := self._gone.pop(number, None)) is not None:
            done = asyncio.get_running_loop().create_future()
            done.cancel()  # nobody waits for it
            self._turns.begin("", 0)
            self._free.pop(number).set_result(_Job(Unloaded(sources), "", 0, done))

    def _match(self) -> None:
        """Give waiting jobs, in their order, to processes that are free."""
        now = asyncio.get_running_loop().time()
        for job in list(self._line.order()) if self._free else ():
            number = self._turns.place(job.model, job.size, self._free, now)
            if number is not None:
                self._line.begin(job)
                self._turns.begin(job.model, job.size)
                self._free.pop(number).set_result(job)
                return self._match()  # who is next may be another's

    async def _live(self, number: int) -> None:
        """One process after the other."""
        while not self._closing.is_set():
            try:
                process = await TextProcess.spawn(self.module, self.limits.memory)
            except OSError as error:
                _log.error("a text process could not be started: %s", error.strerror or error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), _RESPAWN)
                continue
            self._processes[number] = process
            self._gone.pop(number, None)
            try:
                if not self._closing.is_set() and await process.ready():
                    await self._serve(number, process)
            finally:
                self.restarts += not self._closing.is_set()
                await process.end()

    async def _serve(self, number: int, process: TextProcess) -> None:
        """Until the process has ended or must."""
        gone = asyncio.create_task(process.gone())
        try:
            while not gone.done() and not self._closing.is_set():
                free = self._free[number] = asyncio.get_running_loop().create_future()
                self._let_go(number)
                self._match()
                await asyncio.wait([free, gone], return_when=asyncio.FIRST_COMPLETED)
                self._free.pop(number, None)
                if free.done() and not await self._work(process, free.result()):
                    return
        finally:
            self._free.pop(number, None)
            gone.cancel()

    async def _work(self, process: TextProcess, job: _Job) -> bool:
        """One job; False: the process must go."""
        loop = asyncio.get_running_loop()
        began, again = loop.time(), False
        outcome: Result | MuxdError = _ended()
        try:
            outcome = await self._answer(process, job)
            return True
        except TimeoutError:
            if job.result.cancelled():
                _log.info("%s: a text process was replaced: nobody waits for its job any more", job.model)
            else:
                outcome = self._blame(job, f"took longer than {self.limits.deadline:g} s")
        except EOFError:
            # It had ended before; what is to be let go of has gone with it.
            again = job.stage is None and not isinstance(job.work, Unloaded)
            outcome = self._blame(job, "ended its process, most likely for want of memory (text.memory)")
        finally:
            self._turns.end(job.model, job.size)
            if again:
                self._line.again(job)
            else:
                self._finish(job, outcome, loop.time() - began)
        return False

    async def _answer(self, process: TextProcess, job: _Job) -> Result:
        """The deadline is of the process's own seconds: on a busy machine a job takes no more of them. Raises
        TimeoutError then, or after so many times as long by the clock, EOFError where the process ended."""
        aside = isinstance(job.work, Check) and job.work.aside
        times = _BEHIND if isinstance(job.work, Check) else _BUSY
        with only_idle([process.pid] if aside else [], _ASIDE):
            ask = asyncio.create_task(process.ask(job.work, lambda stage: setattr(job, "stage", stage)))
            try:
                await _until(
                    lambda: ask.done() or job.unwanted, process, self.limits.deadline, times, ask, job.result
                )
                await _until(ask.done, process, _UNWANTED, times, ask)
                return ask.result()
            finally:
                ask.cancel()

    def _finish(self, job: _Job, outcome: Result | MuxdError, seconds: float) -> None:
        if job.size:  # what is to be let go of is nobody's
            self._line.end(job)
        if job.size > _LEAST:
            self._rate += 0.2 * (job.size / max(seconds, 1e-4) - self._rate)
        if job.result.done():
            return
        if isinstance(outcome, MuxdError):
            job.result.set_exception(outcome)
        else:
            job.result.set_result(outcome)

    def _blame(self, job: _Job, what: str) -> MuxdError:
        """The process was lost over this job."""
        stage, now = job.stage, asyncio.get_running_loop().time()
        _log.error("%s: a text process was replaced: its job (%s) %s", job.model, stage or "none yet", what)
        if stage is not None:
            self._turns.suspect(job.model, now)
        if isinstance(job.work, Check):
            return ModelFolderError(f"the {_PARTS.get(stage or '', 'tokenizer')} of {job.model} {what}")
        if stage == "template":
            sentence = f"the model's chat template {what} with these messages"
            return BadRequest(sentence, param="messages", code="chat_template_failed")
        if stage == "constraint":
            sentence = f"response_format (or structured_outputs) {what}; make the form of the answer simpler"
            return BadRequest(sentence, param="response_format")
        return TextBusy(f"reading this text {what}; a shorter one may do", retry_after=self._wait())


async def _until(
    over: Callable[[], bool], process: TextProcess, most: float, times: int, *futures: asyncio.Future[Any]
) -> None:
    """Raises TimeoutError once ``process`` has used ``most`` seconds, or ``times`` as many have gone by.
    Looks when one of the ``futures`` is done, and now and then once somebody has left."""
    loop = asyncio.get_running_loop()
    before, end, left = process.seconds(), loop.time() + times * most, most
    while not over():
        if left <= 0 or loop.time() >= end:
            raise TimeoutError
        pending = [future for future in futures if not future.done()]
        patience = max(left, _TICK) if len(pending) == len(futures) > 1 else _TICK
        await asyncio.wait(pending, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        left = most - (process.seconds() - before)


def _told(result: Result) -> Result:
    match result:
        case Refusal():
            raise _KINDS.get(result.kind, MuxdError)(result.message, param=result.param, code=result.code)
        case Defect():
            _log.error("unexpected %s in a text process\n%s", result.name, result.stack)
            raise MuxdError(
                "muxd failed to read this request; the reason is in its log", code="internal_error"
            )
    return result


def _ended() -> MuxdError:
    return TextBusy("muxd is shutting down", retry_after=5.0)
