"""muxd.toml files from a plan: one for a host, whose units over several devices are meshes."""

from pathlib import Path

import msgspec
from support.placements import GB, load

from muxd.config_load import load as read
from muxd.placement.problem import Gpus, Member, Plan, Problem, Unit
from muxd.placement.settings import files


def member(name: str) -> Member:
    return Member(name, 100, 50, 8, 0.5, 1.5, 3.0, 0.1, 0.01)


def test_a_host_is_one_file_with_its_devices_and_meshes(tmp_path: Path) -> None:
    models = [load(name, "llama-3-8b", 1.5) for name in "abcd"]
    models[0] = msgspec.structs.replace(models[0], path="/models/a", ttft_slo=2.0)
    models[1] = msgspec.structs.replace(models[1], dtype="float32")
    problem = Problem(tuple(models), Gpus("A100", 80 * GB, 4), 10)
    units = (
        Unit(0, (0,), (member("a"), member("b")), 1 << 30, 0.5),
        Unit(0, (1,), (member("c"),), 2 << 30, 0.5),
        Unit(0, (2, 3), (member("d"),), 3 << 30, 0.5),
    )
    found = files(Plan("ours", units, 1.0), problem)
    assert sorted(found) == ["host-0.toml"]
    (tmp_path / "muxd.toml").write_text(found["host-0.toml"])
    config = read(tmp_path / "muxd.toml", env={})
    assert [(one.name, one.pool) for one in config.device] == [
        ("cuda:0", str(1 << 30)), ("cuda:1", str(2 << 30)), ("cuda:2+cuda:3", str(3 << 30)),
    ]  # fmt: skip
    assert {m.name: (m.device, m.rate, m.ttft_slo) for m in config.model} == {
        "a": ("cuda:0", 1.5, 2.0), "b": ("cuda:0", 1.5, 0.0), "c": ("cuda:1", 1.5, 0.0),
        "d": ("cuda:2+cuda:3", 1.5, 0.0),
    }  # fmt: skip
    assert {m.name: m.dtype for m in config.model if m.name != "d"} == {
        "a": "bfloat16", "b": "float32", "c": "bfloat16",
    }  # fmt: skip
    assert {m.name: m.tp for m in config.model} == {"a": 1, "b": 1, "c": 1, "d": 2}
    assert 'dtype = "float32"' in found["host-0.toml"]


def test_a_mesh_alone_is_a_device_too(tmp_path: Path) -> None:
    problem = Problem((load("d", "llama-3-8b", 1.5),), Gpus("A100", 80 * GB, 4))
    found = files(Plan("ours", (Unit(0, (0, 1, 2, 3), (member("d"),), 3 << 30, 0.5),), 1.0), problem)
    (tmp_path / "muxd.toml").write_text(found["host-0.toml"])
    config = read(tmp_path / "muxd.toml", env={})
    assert [one.members for one in config.device] == [["cuda:0", "cuda:1", "cuda:2", "cuda:3"]]
    assert [(m.device, m.tp) for m in config.model] == [("", 4)]
