"""More models than memory, and something goes wrong in the middle of whatever is under way: nothing is lost,
held twice or stuck, and once nothing goes wrong any more everybody gets its turn.

All of muxd that decides and performs is real, and so are the files and the memory; processes are played.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support import played_fleet
from support.daemon_here import machine_of
from support.played_fleet import POOL, PlayedFleet, Process, answer, filled_here
from support.tiny import tiny_served
from support.virtual_loop import VirtualLoop

from muxd.clock import VirtualClock
from muxd.config import ResidencyConfig
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import MuxdError
from muxd.fleet import crew, supervisor
from muxd.fleet.catalog import Opened
from muxd.messages import Sampling

NAMES = ["a", "b", "c", "d"]
PROMPT = [5, 6, 7, 8, 9] * 3
EXAMPLES = int(os.environ.get("MUXD_FAULTS", "40"))
TURN = 900.0  # virtual seconds within which everybody has had its turn when nothing goes wrong any more


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Opened]:
    root = tmp_path_factory.mktemp("models")
    folders = {name: tiny_served(root / name, seed) for seed, name in enumerate(NAMES)}
    return {name: Opened(played_fleet.settings(name, folder)) for name, folder in folders.items()}


class Asked:
    """One request and how it ended, as its client sees it."""

    def __init__(self, fleet: PlayedFleet, model: str, tokens: int):
        self.model, self.wanted, self.tokens, self.outcome, self.error = model, tokens, list[int](), "", ""
        self.stream: TokenStream | None = None
        request = Request("r", model, PROMPT, tokens, Sampling(temperature=0.0), frozenset())
        try:
            self.stream = fleet.roster.submit(request)
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
        self.fleet.audit()
        assert not self.fleet.arena.ledger.held_blocks
        seen = Counter(one.outcome for one in self.asked)
        assert seen == Counter(self.fleet.observer.outcomes), "both sides count alike"
        assert all(one.error for one in self.asked if one.outcome in ("refused", "failed"))

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


WHAT = [
    *["ask"] * 8, *["leave"] * 2, "sleep", "wake", *["kill"] * 3, "stand", *["go_on"] * 2, "crash", "lack",
    "take_file", *["bring_file"] * 2, "fill_memory", "free_memory",
]  # fmt: skip
steps = st.tuples(st.sampled_from(WHAT), st.sampled_from(NAMES), st.integers(0, 11))


@settings(max_examples=EXAMPLES, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    course=st.lists(steps, min_size=5, max_size=40),
    machine=st.sampled_from([1.5, 2.5, 3.2]),
    host=st.sampled_from(["0", "1.5", "auto"]),
    limited=st.booleans(),
)
def test_whatever_goes_wrong_every_request_ends_and_everybody_gets_its_turn(
    models: dict[str, Opened], course: list[tuple[str, str, int]], machine: float, host: str, limited: bool
) -> None:
    async def scene(played: Course) -> None:
        for step in course:
            await played.do(*step)
        await played.settle()

    with fleet_of(models, machine=machine, host=host, limited=limited) as play:
        play(scene)


# ---- each by itself ------------------------------------------------------------------------------


def awake(played: Course) -> set[str]:
    return {name for name, entry in played.fleet.entries.items() if entry.state == "ready"}


async def asked(played: Course, name: str) -> Asked:
    one = Asked(played.fleet, name, 4)
    async with asyncio.timeout(TURN):
        await one.reading
    return one


def test_on_a_machine_without_a_limit_what_sleeps_leaves_the_memory_that_a_wake_needs(
    models: dict[str, Opened],
) -> None:
    """Weights in host memory and those of who is there are in one memory there."""

    async def scene(played: Course) -> None:
        for name in NAMES * 2:
            assert (await asked(played, name)).outcome == "served"
            played.fleet.audit()

    with fleet_of(models, machine=2.5, host="auto", limited=False) as play:
        play(scene)


def test_others_take_memory_and_those_who_are_there_take_turns_in_what_is_left(
    models: dict[str, Opened],
) -> None:
    async def scene(played: Course) -> None:
        first, *_ = awake(played)
        await played.fleet.roster.sleep(first, now=True).finished()
        played.machine[0] -= models[first].plan.bytes  # there is room for two, where there was for three
        for name in NAMES * 2:
            assert (await asked(played, name)).outcome == "served"

    with fleet_of(models, machine=3.9, host="0", limited=False) as play:
        play(scene)


def test_who_finds_no_room_whoever_leaves_tells_its_requests_so(models: dict[str, Opened]) -> None:
    async def scene(played: Course) -> None:
        one = await asked(played, "a")
        assert one.outcome == "failed"
        assert "a could not be woken: it takes" in one.error
        assert played.fleet.entries["a"].state == "asleep"

    with fleet_of(models, machine=0.5, host="0", limited=True) as play:
        play(scene)


def test_a_model_that_rests_gives_its_place_to_who_is_asked_for(models: dict[str, Opened]) -> None:
    """It has failed too often, and is tried again only in a while."""

    async def scene(played: Course) -> None:
        (name,) = awake(played)
        other = next(one for one in NAMES if one != name)
        played.fleet.crashing = True
        async with asyncio.timeout(TURN):
            while played.fleet.entries[name].state != "failed":
                played.kill(name, 0)
                await asyncio.sleep(0.1)
        played.fleet.crashing = False
        began = played.fleet.clock.now()
        assert (await asked(played, other)).outcome == "served"
        assert played.fleet.clock.now() - began < 10.0
        assert (await asked(played, name)).outcome == "served", "and comes back when it is asked for"

    with fleet_of(models, machine=1.5, host="1.5", limited=True) as play:
        play(scene)


def test_whatever_is_thrown_while_weights_are_read_is_told_and_tried_again(
    models: dict[str, Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise MemoryError

    async def scene(played: Course) -> None:
        name = next(one for one in NAMES if one not in awake(played))
        monkeypatch.setattr(supervisor, "filled", broken)
        one = await asked(played, name)
        assert one.outcome == "failed"
        assert f"{name} could not be woken: of a defect (MemoryError)" in one.error
        played.fleet.audit()
        monkeypatch.undo()
        assert (await asked(played, name)).outcome == "served"

    with fleet_of(models, machine=1.5, host="0", limited=True) as play:
        play(scene)


def test_the_file_of_another_model_is_not_taken_for_its_own(
    models: dict[str, Opened], tmp_path: Path
) -> None:
    """Its tensors lie elsewhere; once its own is back it wakes."""
    other = tiny_served(tmp_path / "other", 9, inner=128) / "model.safetensors"

    async def scene(played: Course) -> None:
        name = next(one for one in NAMES if one not in awake(played))
        file = played._file(name)
        file.rename(file.with_suffix(".away"))
        file.write_bytes(other.read_bytes())
        one = await asked(played, name)
        assert "is another file than when" in one.error
        played.bring_file(name)
        assert (await asked(played, name)).outcome == "served"

    with fleet_of(models, machine=1.5, host="0", limited=True) as play:
        play(scene)
