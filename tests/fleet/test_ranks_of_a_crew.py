"""A crew of several ranks: who is told, who answers, whether they agree; and where a cut model goes."""

import asyncio
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import tiny_served

from muxd.config import Config, DeviceConfig, ModelConfig
from muxd.device.base import Device
from muxd.device.cpu import Cpu
from muxd.device.mesh import Mesh
from muxd.errors import ConfigError
from muxd.fleet.catalog import Entry
from muxd.fleet.crew import Crew
from muxd.fleet.planning import Planning
from muxd.link.daemon_end import DaemonEnd, private_directory

MESHES = ("cpu:0+cpu:1", "cpu:2+cpu:3")


class Nobody:
    """Hears nothing."""

    def on_message(self, message: object) -> None: ...

    def on_lost(self, reason: str) -> None: ...


def crew(ranks: int) -> Crew:
    """Of processes that were not started."""

    async def made() -> Crew:
        directory = private_directory()
        link = DaemonEnd(directory)
        try:
            return Crew(link, cast("Any", None), {"both": "m/1"}, Nobody(), range(ranks))
        finally:
            link.close()
            shutil.rmtree(directory)

    return asyncio.run(made())


@given(st.permutations([(batch, rank) for batch in (1, 2) for rank in range(3)]), st.integers(0, 5))
def test_ranks_agree_until_one_says_something_else(told: list[tuple[int, int]], odd: int) -> None:
    it = crew(3)
    heard: set[int] = set()
    for at, (batch, _) in enumerate(told):
        wrong = at == odd
        found = it.agrees(batch, [batch, 8 if wrong else 7])
        assert found == (not wrong or batch not in heard)
        if wrong:
            return
        heard.add(batch)
    assert it.agrees(1, [0]), "a batch that all have told is forgotten"


def test_one_rank_agrees_with_itself() -> None:
    it = crew(1)
    assert it.agrees(1, [2])
    assert it.agrees(1, [3])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_served(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def entries(folder: Path) -> list[Entry]:
    made = []
    for name, tp in {"a": 2, "b": 2, "c": 1, "d": 1}.items():
        made.append(Entry(ModelConfig(name, str(folder), dtype="float32", tp=tp)))
        made[-1].open()
        assert not made[-1].error, made[-1].error
    return made


def test_cut_models_are_spread_over_the_meshes_of_their_size(folder: Path, entries: list[Entry]) -> None:
    config = Config(
        device=[DeviceConfig(name) for name in ("cpu:9", *MESHES)], model=[one.config for one in entries]
    )
    devices: dict[str, Device] = {"cpu:9": Cpu(1)}
    devices |= {name: Mesh(name, [Cpu(1), Cpu(1)]) for name in MESHES}
    planning = Planning(config, devices, dict.fromkeys(devices, 64 << 20))
    planning.start(entries[:2])
    assert {one.device for one in entries[:2]} == set(MESHES)
    planning.start(entries)
    assert {one.device for one in entries if one.config.tp == 2} <= set(MESHES)
    assert all(one.device in devices for one in entries)
    assert planning.pins(entries) == {}, "a plan may move them"
    another = Entry(ModelConfig("e", str(folder), dtype="float32", tp=2))
    another.open()
    assert planning.place(another, entries) in MESHES


def test_a_rank_has_a_part_of_the_weights_and_of_the_rows(entries: list[Entry]) -> None:
    cut, whole = (entries[at].opened for at in (0, 2))
    assert cut is not None
    assert whole is not None
    assert len(cut.parts) == 2
    assert (cut.step, len(whole.parts)) == ("torch", 1)
    assert (cut.rank_spec.kv_heads, whole.rank_spec.kv_heads) == (1, 2)
    assert entries[0].parameters == entries[2].parameters


def test_a_device_that_is_no_mesh_of_that_size_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"model.tp: 2 is not the number"):
        Mesh("m", [Cpu(1)] * 3).seat(2)
