"""A plan with meshes as `muxctl plan --out` writes it is a daemon's configuration: on four GPUs of the
stand-in, two of which are a mesh, and on all four as one."""

from pathlib import Path

import pytest
from support.live import LiveDaemon, live
from support.two_units import Stream, ask, folder, row, whole
from support.where import Where, on

from muxd.admin.schemas import ProcessInfo
from muxd.cost.shapes import read_shape
from muxd.placement.problem import Gpus, Member, ModelLoad, Plan, Problem, Unit
from muxd.placement.settings import files

TOKENS, POOL = 40, 16 << 20

on_the_stand_in = on("stand-in")


@pytest.fixture(scope="module")
def folders(where: Where, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: folder(root / name, seed, where) for seed, name in enumerate("abc")}


@pytest.fixture(scope="module")
def alone(
    where: Where, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[int]]:
    """What each answers where nothing is cut."""
    text = planned(folders, {(0,): "abc"})
    with live(text, tmp_path_factory.mktemp("alone"), where.env) as daemon:
        return {name: ask(daemon, name, TOKENS) for name in folders}


def planned(folders: dict[str, Path], units: dict[tuple[int, ...], str]) -> str:
    """The host's file: GPUs, and the models on them."""
    models = tuple(
        ModelLoad(name, name, read_shape(path), 1.0, 20, TOKENS, dtype="float32", path=str(path))
        for name, path in folders.items()
    )
    made = tuple(
        Unit(0, gpus, tuple(Member(name, 100, 50, 8, 1.0, 1.0, 9.0, 0.1, 0.01) for name in names), POOL, 0.1)
        for gpus, names in units.items()
    )
    problem = Problem(models, Gpus("stand-in", 32 << 30, 4), 50)
    return files(Plan("ours", made, 1.0), problem)["host-0.toml"]


def on_four(where: Where) -> dict[str, str]:
    return {**where.env, "FAKE_CUDA_DEVICES": "4"}


def workers(daemon: LiveDaemon, model: str) -> list[ProcessInfo]:
    """By rank."""
    found = [one for one in daemon.admin.ps() if one.role == "worker" and one.model == model]
    return sorted(found, key=lambda one: (one.phases, one.rank))


def together(daemon: LiveDaemon, alone: dict[str, list[int]], names: str) -> None:
    streams = [Stream(daemon, name, TOKENS) for name in names]
    for stream, name in zip(streams, names, strict=True):
        assert stream.join().tokens == alone[name], daemon.log
    assert whole(daemon)


@on_the_stand_in
def test_a_plan_s_file_serves_on_a_mesh_of_two_and_two_gpus_beside_it(
    where: Where, tmp_path: Path, folders: dict[str, Path], alone: dict[str, list[int]]
) -> None:
    text = planned(folders, {(0, 1): "a", (2,): "b", (3,): "c"})
    with live(text, tmp_path, on_four(where)) as daemon:
        together(daemon, alone, "abcabc")
        assert {name: row(daemon, name).device for name in "abc"} == {
            "a": "cuda:0+cuda:1", "b": "cuda:2", "c": "cuda:3"
        }  # fmt: skip
        assert {one.device for one in workers(daemon, "a")} == {"cuda:0", "cuda:1"}
        assert list(daemon.admin.status().devices) == ["cuda:0+cuda:1", "cuda:2", "cuda:3"]
        # A pool on every GPU, one model's weights on two, the others' on one.
        where.check_regions(daemon.process.pid, *["pool"] * 4, *["weights"] * 4)


@on_the_stand_in
def test_ranks_on_four_gpus_have_one_pool_and_the_same_rows(
    where: Where, tmp_path: Path, folders: dict[str, Path], alone: dict[str, list[int]]
) -> None:
    """All get every command as it is, so a row is the same on each: else their tokens would differ, and the
    crew would be replaced."""
    text = planned(folders, {(0, 1, 2, 3): "ab"})
    with live(text, tmp_path, on_four(where)) as daemon:
        together(daemon, alone, "abab")
        for name in "ab":
            found = workers(daemon, name)
            assert [one.rank for one in found] == [0, 1, 2, 3] * (len(found) // 4)
            assert [one.device for one in found[:4]] == [f"cuda:{number}" for number in range(4)]
            assert {one.restarts for one in found} == {0}
        where.check_regions(daemon.process.pid, *["pool"] * 4, *["weights"] * 8)
        said = daemon.admin.why(Stream(daemon, "a", 4).join().id)
        assert said[0].cut_over == [f"cuda:{number}" for number in range(4)]
