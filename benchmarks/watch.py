"""What the feed costs: microseconds of the process per decode step through a unit, unwatched and watched.

    python benchmarks/watch.py [--models 8] [--running 64] [--seconds 4]

A unit in steady state: ``running`` sequences decode, spread over ``models``, workers are played. Rounds
without a watcher and with one (who takes everything) take turns; time is of the process, so a busy machine
matters little. Also: one look at all facts, and bytes a second to a watcher.
"""

import argparse
import asyncio
import time
from typing import Any, cast

from prometheus_client import CollectorRegistry

from muxd.cli.tables import render
from muxd.clock import MonotonicClock
from muxd.config import Config, ModelConfig, PoolConfig
from muxd.cost.profile import FORMAT, Device, Grid, ModelProfile, Profile, Shape
from muxd.cost.table import CostTable
from muxd.device.cpu import Cpu
from muxd.engine.metrics import Metrics
from muxd.engine.observer import Observer
from muxd.engine.request import Request
from muxd.engine.unit import Unit
from muxd.fleet.catalog import Entry
from muxd.fleet.events import Events
from muxd.fleet.site import Site
from muxd.messages import BatchDone, Decode, Prefill, Sampling
from muxd.pool.arena import Arena
from muxd.sim.build import make_scheduler
from muxd.watch.facts import Facts
from muxd.watch.feed import PERIOD, Feed
from muxd.watch.history import History

_BLOCK = 8192


class Bench:
    """One site; workers answer at once."""

    def __init__(self, models: int, running: int):
        self.names = [f"llm-{i}" for i in range(models)]
        grid, shape = Grid([100], [1], [0], [[[0.01]]]), Shape(2, 1, 64, 1 << 20, "bfloat16")
        profile = Profile(
            FORMAT, Device("bench", 100, list(range(1, 101))), {"m": ModelProfile(shape, grid, grid)}
        )
        each = -(-running // models)
        entries = [ModelConfig(n, n, share=max(1, 100 // models), max_running=each) for n in self.names]
        scheduler = make_scheduler(
            Config(pool=PoolConfig(bytes="1G"), model=entries),
            CostTable(profile, dict.fromkeys(self.names, "m")),
            "mux",
        )
        self.clock = MonotonicClock()
        self.observer = Observer(Metrics(CollectorRegistry()))
        self.sent: list[tuple[str, Prefill | Decode]] = []
        self.unit = Unit(
            scheduler, lambda model, command: self.sent.append((model, command)), self.clock, self.observer
        )
        device, nothing = Cpu(2), cast(Any, None)
        self.arena = Arena(device, _BLOCK * 16, _BLOCK)  # nobody computes in it
        self.arena.ledger = scheduler.ledger
        catalog = {one.name: Entry(one) for one in entries}
        site = Site(
            name="cpu", device=device, arena=self.arena, unit=self.unit, link=nothing, clock=self.clock,
            spawns=nothing, zygote=nothing, place=nothing,
        )  # fmt: skip
        for name, entry in catalog.items():
            entry.lane, entry.device = scheduler.lanes[name], "cpu"
        self.facts = Facts(
            entries=catalog, sites={"cpu": site}, observer=self.observer, events=Events(time.time),
            history=History(self.clock.now(), self.observer.tokens_out), clock=self.clock, wall=time.time,
            address=lambda: "",
        )  # fmt: skip
        self.feed = Feed(self.facts, self.clock)
        for name in self.names:
            self.unit.worker_ready(name)
            for number in range(each):
                self.unit.submit(
                    Request(
                        f"{name}-{number}-0", name, [1] * 64, 1 << 18, Sampling(temperature=0.0), frozenset()
                    )
                )

    async def steps(self, seconds: float) -> tuple[int, float]:
        """Batches that were done, and seconds of the process that they took. The loop gets its turn."""
        end, began, done = time.monotonic() + seconds, time.process_time(), 0
        while time.monotonic() < end:
            for _ in range(20):
                model, command = self.sent.pop(0)
                count = len(command.chunks) if isinstance(command, Prefill) else len(command.seqs)
                self.unit.batch_done(model, BatchDone(command.batch, [5] * count, 0.01))
            done += 20
            await asyncio.sleep(0)
        return done, time.process_time() - began


async def _watched(bench: Bench, seconds: float) -> tuple[int, float, int]:
    taken = 0

    async def take() -> None:
        nonlocal taken
        with bench.feed.watch(lambda: None) as watcher:
            async for _, body in watcher:
                taken += len(body)

    reader = asyncio.create_task(take())
    await asyncio.sleep(0)
    first = taken
    done, spent = await bench.steps(seconds)
    reader.cancel()
    await asyncio.wait([reader])
    return done, spent, taken - first


async def main(models: int, running: int, seconds: float) -> None:
    bench = Bench(models, running)
    await bench.steps(1.0)  # prompts are computed, and caches are warm
    rows = {"unwatched": [0, 0.0], "watched": [0, 0.0]}
    sent = 0
    for _ in range(4):
        for name in rows:
            if name == "watched":
                done, spent, taken = await _watched(bench, seconds / 4)
                sent += taken
            else:
                done, spent = await bench.steps(seconds / 4)
            rows[name][0] += done
            rows[name][1] += spent
    each = {name: 1e6 * spent / done for name, (done, spent) in rows.items()}
    picture = bench.facts.picture()
    began = time.process_time()
    for _ in range(20):
        bench.facts.change(picture)
    look = (time.process_time() - began) / 20
    table = [[name, f"{cost:.1f}", f"{cost / each['unwatched']:.3f}"] for name, cost in each.items()]
    print(render(("FEED", "US/STEP", "RATIO"), table))
    print(
        f"\n{models} models, {running} running: a look takes {1e3 * look:.2f} ms, {1 / PERIOD:.0f} a second; "
        f"{sent / seconds / 1024:.0f} KiB/s to a watcher"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    asyncio.run(main(given.models, given.running, given.seconds))
