"""A played fleet with more models than memory, and what clients, operators and accidents do to it."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muxd.clock import VirtualClock
from muxd.config import ResidencyConfig
from muxd.device.base import HostWriter
from muxd.device.writing import mapped
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import MuxdError
from muxd.fleet import crew, supervisor
from muxd.fleet.catalog import Opened
from muxd.fleet.routing import Routing
from muxd.messages import Sampling
from muxd.models.stamps import replaced
from muxd.models.weights import fill
from support import played_fleet
from support.daemon_here import machine_of
from support.played_fleet import POOL, PlayedFleet, Process, answer, filled_here
from support.tiny import tiny_served
from support.virtual_loop import VirtualLoop

NAMES = ["a", "b", "c", "d"]
PROMPT = [5, 6, 7, 8, 9] * 3
TURN = 900.0  # virtual seconds within which everybody has had its turn when nothing goes wrong any more


def opened_in(root: Path) -> dict[str, Opened]:
    """Four models of one size, each with weights of its own."""
    folders = {name: tiny_served(root / name, seed) for seed, name in enumerate(NAMES)}
    return {name: Opened(played_fleet.settings(name, folder)) for name, folder in folders.items()}


class Asked:
    """One request and how it ended, as its client sees it."""

    def __init__(self, fleet: PlayedFleet, model: str, tokens: int):
        self.model, self.wanted, self.tokens, self.outcome, self.error = model, tokens, list[int](), "", ""
        self.stream: TokenStream | None = None
        request = Request("r", model, PROMPT, tokens, Sampling(temperature=0.0), frozenset())
        try:
            self.stream = Routing(fleet.roster.entries, fleet.roster.sites).submit(request)
        except MuxdError as error:
            self.outcome, self.error = "refused", error.message
            return
        self.reading = asyncio.create_task(self._read(self.stream))

    async def _read(self, stream: TokenStream) -> None:
        try:
            async for delta in stream:
                self.tokens += delta.tokens
        except MuxdError as error:
            self._end("failed", error.message)
        else:
            self._end("cancelled" if len(self.tokens) < self.wanted else "served")

    def _end(self, outcome: str, error: str = "") -> None:
        assert not self.outcome, "it has ended before"
        self.outcome, self.error = outcome, error
        assert self.tokens == answer(PROMPT, self.wanted)[: len(self.tokens)]

    def cancel(self) -> None:
        if self.stream is not None and not self.outcome:
            self.stream.close()
            self.stream._wake.set()


class Course:
    """One drawn order of requests, faults and waiting."""

    def __init__(self, fleet: PlayedFleet, models: Mapping[str, Opened], machine: list[int]):
        self.fleet, self.models, self.machine = fleet, models, machine
        self.most = machine[0]
        self.asked: list[Asked] = []

    async def do(self, what: str, model: str, number: int) -> None:
        step: Callable[[str, int], Any] = getattr(self, what)
        step(model, number)
        await asyncio.sleep((0.0, 0.03, 0.2, 0.5, 2.0, 7.0)[number % 6])
        self.fleet.audit()

    # ---- clients ----------------------------------------------------------------------------------

    def ask(self, model: str, number: int) -> None:
        self.asked.append(Asked(self.fleet, model, 1 + number * 5))

    def leave(self, model: str, number: int) -> None:
        going = [one for one in self.asked if not one.outcome and one.model == model]
        if going:
            going[number % len(going)].cancel()

    # ---- an operator ------------------------------------------------------------------------------

    def sleep(self, model: str, number: int) -> None:
        self._ordered(lambda: self.fleet.roster.sleep(model, now=bool(number % 2)))

    def wake(self, model: str, number: int) -> None:
        self._ordered(lambda: self.fleet.roster.wake(model))

    def _ordered(self, order: Callable[[], object]) -> None:
        with suppress(MuxdError):  # it may be busy, or asleep already
            order()

    # ---- faults -----------------------------------------------------------------------------------

    def kill(self, model: str, number: int) -> None:
        for process in list(self.fleet.living(model)):
            process.end(-9)

    def stand(self, model: str, number: int) -> None:
        for process in self.fleet.living(model):
            process.stand(True)

    def go_on(self, model: str, number: int) -> None:
        for process in self.fleet.living(model):
            process.stand(False)

    def crash(self, model: str, number: int) -> None:
        self.fleet.crashing = not self.fleet.crashing

    def lack(self, model: str, number: int) -> None:
        self.fleet.lacking = not self.fleet.lacking

    def take_file(self, model: str, number: int) -> None:
        self.bring_file(model)
        file = self._file(model)
        file.rename(file.with_suffix(".away"))
        if number % 2:
            file.write_bytes(file.with_suffix(".away").read_bytes()[: 3000 * number])

    def bring_file(self, model: str, number: int = 0) -> None:
        file = self._file(model)
        if file.with_suffix(".away").exists():
            file.with_suffix(".away").rename(file)

    def other_file(self, model: str, number: int) -> None:
        """Other weights in the same places, written anew or over the old ones."""
        self.bring_file(model)
        file = self._file(model)
        content = bytearray(file.read_bytes())
        content[-4:] = np.float32(number / 16).tobytes()
        before, way = file.stat().st_mtime_ns, file.with_suffix(".new") if number % 2 else file
        way.write_bytes(content)
        os.utime(way, ns=(before, before + 1))  # within one tick of the system's clock
        way.replace(file)

    def fill_memory(self, model: str, number: int) -> None:
        """Others on the machine take it, nearly all or a part."""
        self.machine[0] = self.most * (number % 4) // 4

    def free_memory(self, model: str, number: int) -> None:
        self.machine[0] = self.most

    def _file(self, model: str) -> Path:
        return self.models[model].folder / "model.safetensors"

    def mend(self) -> None:
        self.fleet.crashing = self.fleet.lacking = False
        self.machine[0] = self.most
        for name in NAMES:
            self.bring_file(name)
            self.go_on(name, 0)

    # ---- the end ----------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Nothing goes wrong any more."""
        self.mend()
        async with asyncio.timeout(TURN):
            for one in self.asked:
                if one.stream is not None:
                    await one.reading
            for name in NAMES * 2:
                while (one := await self._answered(name)).outcome != "served":
                    assert one.error, "without a word"
                    await asyncio.sleep(1.0)
            for name in NAMES:
                await self._wakes_as_its_files_are(name)
        self.fleet.audit()
        assert not self.fleet.arena.ledger.held_blocks
        seen = Counter(one.outcome for one in self.asked)
        assert seen == Counter(self.fleet.observer.outcomes), "both sides count alike"
        assert all(one.error for one in self.asked if one.outcome in ("refused", "failed"))

    def check_weights(self) -> None:
        """What is in memory is what its files say, as long as they are those that it was read from."""
        for name, entry in self.fleet.entries.items():
            there = self.fleet.site.supervisors.get(name)
            region = entry.shelved if there is None else there._weights
            if region is None or region.closed or replaced(entry.files):
                continue
            read = np.zeros(self.models[name].plan.bytes, dtype=np.uint8)
            fill(self.models[name].plan, HostWriter(read))
            (piece,) = region.pieces
            there_now = mapped(piece.fd, piece.nbytes)
            assert np.array_equal(there_now, read), f"{name} computes with other weights than its file's"

    async def _wakes_as_its_files_are(self, name: str) -> None:
        if name in awake(self):
            await self.fleet.roster.sleep(name, now=True).finished()
        assert (await self._answered(name)).outcome == "served"
        assert replaced(self.fleet.entries[name].files) == []
        self.check_weights()

    async def _answered(self, name: str) -> Asked:
        one = Asked(self.fleet, name, 4)
        self.asked.append(one)
        if one.stream is not None:
            await one.reading
        return one


@contextmanager
def fleet_of(
    models: Mapping[str, Opened], *, machine: float, host: str, limited: bool
) -> Iterator[Callable[[Callable[[Course], Any]], None]]:
    """``machine``: memory in weights of a model, beside the pool; ``limited``: by device.memory, on a
    machine that has more. Yields what plays a scene on it."""
    size = next(iter(models.values())).plan.bytes
    limit = POOL + int(machine * size)
    clock = VirtualClock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "WorkerProcess", Process)
        patch.setattr(supervisor, "filled", filled_here)
        left = machine_of(limit + (4 * size if limited else 0), patch)
        kept = host if host == "auto" else str(int(float(host) * size))

        def play(scene: Callable[[Course], Any]) -> None:
            async def all_of_it() -> None:
                residency = ResidencyConfig(host_memory=kept, least=0.5, patience=1.0)
                fleet = PlayedFleet(models, clock, residency, limit if limited else 0)
                course = Course(fleet, models, left)
                try:
                    await fleet.start()
                    await scene(course)
                finally:
                    course.mend()
                    await fleet.close()
                assert not fleet.site.supervisors or all(
                    one.weights_bytes == 0 for one in fleet.site.supervisors.values()
                )
                assert not any(one.alive for one in fleet.processes.values())

            with asyncio.Runner(loop_factory=lambda: VirtualLoop(clock)) as runner:
                runner.run(all_of_it())

        yield play


def awake(played: Course) -> set[str]:
    return {name for name, entry in played.fleet.entries.items() if entry.state == "ready"}


async def asked(played: Course, name: str) -> Asked:
    one = Asked(played.fleet, name, 4)
    async with asyncio.timeout(TURN):
        await one.reading
    return one
