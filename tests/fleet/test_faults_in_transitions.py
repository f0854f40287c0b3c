"""More models than memory, and something goes wrong in the middle of whatever is under way: nothing is lost,
held twice or stuck, and once nothing goes wrong any more everybody gets its turn.

All of muxd that decides and performs is real, and so are the files and the memory; processes are played.
"""

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.courses import NAMES, TURN, Course, asked, awake, fleet_of, opened_in
from support.played_fleet import BOOT, FORK
from support.tiny import tiny_served

from muxd.fleet import supervisor
from muxd.fleet.catalog import Opened

EXAMPLES = int(os.environ.get("MUXD_FAULTS", "40"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Opened]:
    return opened_in(tmp_path_factory.mktemp("models"))


WHAT = [
    *["ask"] * 8, *["leave"] * 2, "sleep", "wake", *["kill"] * 3, "stand", *["go_on"] * 2, "crash", "lack",
    "take_file", *["bring_file"] * 2, *["other_file"] * 2, "fill_memory", "free_memory",
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


def test_what_wakes_take_is_learnt_by_where_the_weights_were(models: dict[str, Opened]) -> None:
    async def scene(played: Course) -> None:
        for name in NAMES:
            assert (await asked(played, name)).outcome == "served"
        for name in awake(played):
            await played.fleet.roster.sleep(name, now=True).finished()
            assert (await asked(played, name)).outcome == "served"
        seen = [entry.wakes for entry in played.fleet.entries.values()]
        parked, cold = [one.parked for one in seen if one.parked], [one.cold for one in seen if one.cold]
        assert parked
        assert cold
        assert FORK + BOOT <= min(parked) <= max(parked) < min(cold) < 1.0

    with fleet_of(models, machine=2.5, host="1.5", limited=True) as play:
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
