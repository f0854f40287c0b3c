"""Models without a configured share divide their device evenly, whoever comes and goes; real workers."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from support.daemon_here import played
from support.tiny import tiny_served

import muxd.daemon
from muxd.config import Config, ModelConfig, PoolConfig, ServerConfig
from muxd.daemon import Daemon
from muxd.device.cpu import Cpu


class Capped(Cpu):
    """Claims that workers keep the share they were started with."""

    @property
    def caps(self) -> bool:
        return True


def config(folder: Path) -> Config:
    models = [
        ModelConfig(name, str(tiny_served(folder / name, seed)), dtype="float32", share=20 * (name == "d"))
        for seed, name in enumerate("abcd")
    ]
    server = ServerConfig(port=0, socket=str(folder / "s"), shutdown_grace=0.1)
    return Config(server=server, pool=PoolConfig(bytes="8M"), model=models)


def shares(daemon: Daemon, changes: Iterable[tuple[str, str]]) -> list[dict[str, int]]:
    """Of the models that are served, at the start and after each change."""
    found: list[dict[str, int]] = []

    def look() -> None:
        lanes = {name: entry.lane for name, entry in daemon.entries.items()}
        found.append({name: lane.spec.share for name, lane in lanes.items() if lane is not None})

    async def scene() -> None:
        look()
        for kind, name in changes:
            roster = daemon.roster
            change = roster.unload(name, now=False) if kind == "unload" else roster.load(name)
            async for _ in change.watch():
                pass
            look()

    played(daemon, scene)
    return found


@pytest.mark.parametrize(("kind", "beside"), [(Cpu, (25, 50)), (Capped, (25, 25))])
def test_equal_shares_follow_loads_and_unloads(
    kind: type[Cpu], beside: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On four cores: three models have a core each, so that all of them run beside each other. Configured
    ones stay; so do those of workers that are capped for life."""
    monkeypatch.setattr(muxd.daemon, "open_device", lambda *_, **__: kind(4))
    changes = [("unload", "c"), ("unload", "b"), ("load", "b"), ("load", "c")]
    found = shares(Daemon(config(tmp_path)), changes)
    three, two = beside
    assert found == [
        {"a": 25, "b": 25, "c": 25, "d": 20},
        {"a": three, "b": three, "d": 20},
        {"a": two, "d": 20},
        {"a": three, "b": 25, "d": 20},
        {"a": 25, "b": 25, "c": 25, "d": 20},
    ]
