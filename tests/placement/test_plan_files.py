"""muxd.toml files from a plan: one for a host, whose units over several devices are meshes."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from support.placements import GB, chatlmsys, load, published_table

from muxd.config_load import load as read
from muxd.cost.analytic import Roofline
from muxd.placement.estimator import Estimator
from muxd.placement.planner import make_plan
from muxd.placement.problem import Gpus, Member, Plan, Problem, Unit
from muxd.placement.released import Released
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


def synthetic() -> Problem:
    """The models of MuxServe's synthetic workload on its cluster, which needs meshes for the large ones."""
    sizes = ["llama-7b"] * 12 + ["llama-13b"] * 4 + ["llama-30b"] * 2 + ["llama-65b"]
    models = tuple(load(f"llm-{i}", size, 20 * (i + 1) ** -1.3, 161, 338) for i, size in enumerate(sizes))
    return Problem(models, Gpus("A100-80G", 80 * GB, 8, 4), 20)


def published() -> tuple[Problem, Plan]:
    problem = chatlmsys(2000)
    return problem, make_plan("released", Released(problem, published_table()))


def ours() -> tuple[Problem, Plan]:
    problem = synthetic()
    costs = Roofline("a100", {model.cost: model.shape for model in problem.models})
    return problem, make_plan("greedy", Estimator(problem, costs))


@pytest.mark.parametrize("made", [published, ours])
def test_plans_with_meshes_are_configurations_of_daemons(
    made: Callable[[], tuple[Problem, Plan]], tmp_path: Path
) -> None:
    """The published plan of ChatLMSYS, and one of the synthetic workload's models, host by host."""
    problem, plan = made()
    units = [unit for unit in plan.units if unit.members]
    assert max(unit.degree for unit in units) > 1
    placed: dict[str, tuple[str, int]] = {}
    for name, text in files(plan, problem).items():
        (tmp_path / name).write_text(text)
        config, host = read(tmp_path / name, env={}), int(name.removeprefix("host-").removesuffix(".toml"))
        here = [unit for unit in units if unit.host == host]
        assert {one.name: one.pool for one in config.devices} == {
            "+".join(f"cuda:{gpu}" for gpu in unit.gpus): str(unit.pool_bytes) for unit in here
        }
        members = [member for one in config.devices for member in one.members]
        assert len(members) == len(set(members)) <= problem.gpus.per_host
        assert config.scheduler.overbook == problem.overbook
        for model in config.model:
            device = model.device or config.devices[0].name
            assert model.tp == len(device.split("+"))
            placed[model.name] = device, model.tp
    assert placed == {
        member.model: ("+".join(f"cuda:{gpu}" for gpu in unit.gpus), unit.degree)
        for unit in units
        for member in unit.members
    }
