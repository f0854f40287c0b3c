"""A parked model that can be loaded neither at its new place nor at its old one: it has failed aloud, holds
nothing, and comes back when there is room. Real workers, on a machine whose memory is made up."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from support.daemon_here import machine_of, played
from support.tiny import tiny_served

from muxd.config import Config, DeviceConfig, ModelConfig, QuotaConfig, ServerConfig
from muxd.daemon import Daemon
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import ModelNotReady
from muxd.messages import Sampling

CORES = sorted(os.sched_getaffinity(0))[:2]
POOL = 8 << 20
FULL = "not enough memory for weights"

pytestmark = [
    pytest.mark.skipif(len(CORES) < 2, reason="needs two cores"),
    pytest.mark.xdist_group("cores"),
]


def config(root: Path) -> Config:
    devices = [DeviceConfig(f"cpu:{n}", cores=[core], pool=str(POOL)) for n, core in enumerate(CORES)]
    models = [
        ModelConfig(
            name, str(tiny_served(root / name, seed)), dtype="float32", device="cpu:0", quota=QuotaConfig(min)
        )
        for seed, (name, min) in enumerate([("a", "2M"), ("b", "0")])
    ]
    return Config(server=ServerConfig(port=0, socket=str(root / "s")), device=devices, model=models)


def submit(daemon: Daemon, tokens: int) -> TokenStream:
    return daemon.submit(Request("r", "a", [5] * 8, tokens, Sampling(temperature=0.0), frozenset()))


async def read(stream: TokenStream) -> int:
    return sum([len(delta.tokens) async for delta in stream])


@pytest.mark.parametrize(
    ("taken", "told"), [("memory", FULL), ("pool", "quota.min")], ids=["no memory", "no room in the pool"]
)
def test_it_fails_with_both_reasons_and_can_be_loaded_again(
    taken: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(config(tmp_path))
    weights = (tmp_path / "a" / "model.safetensors").stat().st_size
    # Both models, and not a second copy beside them.
    machine = machine_of(2 * POOL + weights * 5 // 2, monkeypatch)

    async def scene() -> None:
        source, target = daemon.sites["cpu:0"], daemon.sites["cpu:1"]
        bring_up = target.bring_up

        async def late(*args: Any, keep_queue: bool = False, **more: Any) -> None:
            """It is parked: what it has left is taken."""
            if keep_queue:
                machine[0] = 0
            if keep_queue and taken == "pool":
                source.unit.set_quota("b", source.arena.total_blocks, source.arena.total_blocks, 1.0)
            await bring_up(*args, keep_queue=keep_queue, **more)

        monkeypatch.setattr(target, "bring_up", late)
        running = submit(daemon, 400)
        await anext(aiter(running))
        steps = daemon.roster.move("a", "cpu:1").watch()
        async for step in steps:
            if step.stage == "draining":
                break
        waiting = asyncio.create_task(read(submit(daemon, 5)))
        both = f"{FULL}.*; nor could it go back to cpu:0: .*{told}"
        with pytest.raises(ModelNotReady, match=both):
            async for _ in steps:
                pass
        assert await read(running) > 0
        with pytest.raises(ModelNotReady, match=f"a could not be moved: {both}"):
            await waiting
        with pytest.raises(ModelNotReady, match="a could not be moved"):
            submit(daemon, 5)
        entry = daemon.entries["a"]
        assert (entry.device, entry.state) == ("cpu:0", "failed")
        assert FULL in entry.detail
        assert told in entry.detail
        assert (list(source.supervisors), list(source.unit.lanes)) == (["b"], ["b"])
        assert (list(target.supervisors), list(target.unit.lanes)) == ([], [])

        machine[0] = 4 * POOL
        source.unit.set_quota("b", 0, source.arena.total_blocks, 1.0)
        async for _ in daemon.roster.load("a").watch():
            pass
        assert await read(submit(daemon, 5)) == 5
        for site in daemon.sites.values():
            site.arena.ledger.audit()

    played(daemon, scene)
