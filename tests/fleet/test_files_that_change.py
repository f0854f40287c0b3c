"""The files of a model are replaced, or written to, while it sleeps or is being loaded: what it computes with
is of one set of files, the newest one, or it says why not. Processes are played, files and memory real."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.courses import NAMES, Course, asked, awake, fleet_of, opened_in
from support.played_fleet import filled_here

from muxd.device.base import Region
from muxd.fleet import supervisor
from muxd.fleet.catalog import Opened
from muxd.models.weights import WeightPlan

ANEW = "is another file than the one that its weights are of: they are read anew"


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Opened]:
    return opened_in(tmp_path)


def sleeping(played: Course, *, parked: bool) -> str:
    """Somebody who has been awake."""
    entries = played.fleet.entries.values()
    return next(
        one.name for one in entries
        if one.state == "asleep" and one.files and (one.shelved is not None) == parked
    )  # fmt: skip


async def all_have_been_awake(played: Course) -> None:
    for name in NAMES:
        assert (await asked(played, name)).outcome == "served"


def told_anew(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if ANEW in record.getMessage()]


@pytest.mark.parametrize("number", [0, 1], ids=["written to", "replaced"])
@pytest.mark.parametrize("parked", [True, False])
def test_who_sleeps_wakes_with_the_weights_that_its_file_has_now(
    models: dict[str, Opened], caplog: pytest.LogCaptureFixture, parked: bool, number: int
) -> None:
    async def scene(played: Course) -> None:
        await all_have_been_awake(played)
        name = sleeping(played, parked=parked)
        played.other_file(name, number)
        assert (await asked(played, name)).outcome == "served"
        assert played.fleet.entries[name].files
        played.check_weights()
        assert told_anew(caplog) == [f"{name}: {models[name].folder / 'model.safetensors'} {ANEW}"]
        await all_have_been_awake(played)
        played.check_weights()
        assert len(told_anew(caplog)) == 1, "once for each change"

    with fleet_of(models, machine=2.5, host="1.5", limited=True) as play:
        play(scene)


def test_who_sleeps_with_its_files_as_they_were_reads_nothing(
    models: dict[str, Opened], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor where one of them is gone: what is in memory is all there is of it."""

    async def scene(played: Course) -> None:
        await all_have_been_awake(played)
        name = sleeping(played, parked=True)
        read: list[Region] = []

        async def noted(
            region: Region,
            parts: Sequence[WeightPlan],
            progress: Callable[[int], None],
            streams: Callable[[], bool],
        ) -> None:
            read.append(region)
            await filled_here(region, parts, progress, streams)

        monkeypatch.setattr(supervisor, "filled", noted)
        kept = played.fleet.entries[name].shelved
        played.take_file(name, 0)
        assert (await asked(played, name)).outcome == "served"
        assert read == []
        assert played.fleet.site.supervisors[name]._weights is kept
        assert told_anew(caplog) == []

    with fleet_of(models, machine=2.5, host="1.5", limited=True) as play:
        play(scene)


@pytest.mark.parametrize("number", [0, 1], ids=["written to", "replaced"])
def test_a_file_that_changes_while_it_is_read_is_told_and_read_again(
    models: dict[str, Opened], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    async def scene(played: Course) -> None:
        name = next(one for one in NAMES if one not in awake(played))

        async def slow(
            region: Region,
            parts: Sequence[WeightPlan],
            progress: Callable[[int], None],
            streams: Callable[[], bool],
        ) -> None:
            await filled_here(region, parts, progress, streams)
            played.other_file(name, number)

        monkeypatch.setattr(supervisor, "filled", slow)
        one = await asked(played, name)
        assert one.outcome == "failed"
        assert f"{models[name].folder / 'model.safetensors'} was replaced, or written to, while" in one.error
        assert played.fleet.entries[name].state == "asleep"
        played.fleet.audit()
        monkeypatch.setattr(supervisor, "filled", filled_here)
        assert (await asked(played, name)).outcome == "served"
        played.check_weights()

    with fleet_of(models, machine=1.5, host="0", limited=True) as play:
        play(scene)


@pytest.mark.parametrize("parked", [True, False])
def test_weights_are_not_computed_with_as_another_config_says(
    models: dict[str, Opened], parked: bool
) -> None:
    """Where it only was written anew they are, once it is read."""

    async def scene(played: Course) -> None:
        await all_have_been_awake(played)
        name = sleeping(played, parked=parked)
        file = models[name].folder / "config.json"
        said = file.read_text()
        file.write_text(json.dumps(json.loads(said) | {"rope_theta": 5000.0}))
        one = await asked(played, name)
        assert one.outcome == "failed"
        assert f"{file} is another file than when the model's folder was read" in one.error
        file.write_text(said)
        assert (await asked(played, name)).outcome == "served"
        played.check_weights()

    with fleet_of(models, machine=2.5, host="1.5", limited=True) as play:
        play(scene)
