"""Many models on many devices, their units muxd's own and their workers played, behind the real HTTP door:
``python played_host.py DEVICES MODELS`` prints the address and serves until it is ended.

For pages and feeds of sizes that no host of a test has.
"""

import asyncio
import random
import sys
import time
from typing import Any, cast

import tokenizers
from aiohttp import web
from prometheus_client import CollectorRegistry

from muxd.admin_service import AdminService
from muxd.api.app import make_app, make_runner
from muxd.api.metrics import HttpMetrics
from muxd.clock import MonotonicClock
from muxd.config import Config, ModelConfig
from muxd.device.cpu import Cpu
from muxd.engine.metrics import Metrics
from muxd.engine.observer import Observer
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.engine.slo import Slo
from muxd.engine.stream import TokenStream
from muxd.engine.unit import Unit
from muxd.errors import MuxdError
from muxd.fleet.accounts import place_of
from muxd.fleet.catalog import Entry
from muxd.fleet.events import Events
from muxd.fleet.gate import Gate
from muxd.fleet.site import Site
from muxd.fleet.state import BecameReady, Loading, Spawned
from muxd.messages import BatchDone, Decode, Prefill, Sampling
from muxd.pool.arena import Arena
from muxd.text.tokenizer import Tokenizer
from muxd.watch.facts import Facts
from muxd.watch.feed import Feed
from muxd.watch.history import History
from support.http_door import Scripted
from support.lanes import lane_spec

BLOCK, BLOCKS = 8192, 600  # of each device
FAMILIES = ("llama", "qwen", "gemma", "mistral")
SHARE, ROW = 25, 2  # percent; blocks of a row of four tokens


class PlayedHost:
    """``devices`` times a pool; the models are dealt round."""

    def __init__(self, devices: int, models: int):
        self.clock, self.draw = MonotonicClock(), random.Random(1)
        self.names = [f"{FAMILIES[i % 4]}-{i + 1}b" for i in range(models)]
        self.observer = Observer(Metrics(CollectorRegistry()), {name: Slo(0.5, 0.1) for name in self.names})
        self.events = Events(time.time)
        self.entries = {
            name: Entry(ModelConfig(name, "/nowhere", ttft_slo=0.5, tpot_slo=0.1)) for name in self.names
        }
        self.sites = {f"gpu:{i}": self._site(f"gpu:{i}", self.names[i::devices]) for i in range(devices)}
        self.streams: set[TokenStream] = set()
        self.count = 0
        history = History(self.clock.now(), self.observer.tokens_out)
        facts = Facts(
            entries=self.entries, sites=self.sites, observer=self.observer, events=self.events,
            history=history, clock=self.clock, wall=time.time, address=lambda: "played",
        )  # fmt: skip
        nothing = cast(Any, None)
        self.service = AdminService(
            feed=Feed(facts, self.clock), entries=self.entries, sites=self.sites, observer=self.observer,
            clock=self.clock, address=lambda: "played", stop=lambda: None, roster=nothing, config=Config(),
            events=self.events, gate=Gate(), replanner=nothing, log_lines=nothing, reloaded=nothing,
        )  # fmt: skip

    def _site(self, name: str, models: list[str]) -> Site:
        arena, nothing = Arena(Cpu(), BLOCK * BLOCKS, BLOCK), cast(Any, None)
        for model in models:
            arena.ledger.add_model(
                model, ROW, BLOCKS // ROW, BLOCKS // len(models) // 2 // ROW * ROW, row_tokens=4
            )
        lanes = [lane_spec(model, SHARE, 4, ROW, 600, 8, 100, BLOCKS // ROW) for model in models]
        scheduler = Scheduler(lanes, arena.ledger, Shares([25, 50, 75, 100]), Settings())
        unit = Unit(
            scheduler, lambda model, command: self._sent(unit, model, command), self.clock, self.observer,
            tell=self.events.teller(name), device=name,
        )  # fmt: skip
        device = Cpu(2)
        for model in models:
            entry = self.entries[model]
            entry.device, entry.lane = name, scheduler.lanes[model]
            for step in (Loading(), Spawned({"both": 1}), BecameReady()):
                entry.life.handle(step, self.clock.now())
        return Site(
            name=name, device=device, arena=arena, unit=unit, link=nothing, clock=self.clock, spawns=nothing,
            zygote=nothing, place=place_of(device, arena, Config()),
        )  # fmt: skip

    def _sent(self, unit: Unit, model: str, command: Prefill | Decode) -> None:
        """A played worker: a token each, after a while."""
        count = len(command.chunks) if isinstance(command, Prefill) else len(command.seqs)
        seconds = 0.12 if isinstance(command, Prefill) else 0.06
        done = BatchDone(command.batch, [5] * count, seconds)
        asyncio.get_running_loop().call_later(seconds, unit.batch_done, model, done)

    async def play(self) -> None:
        """Requests, more for the first models than for the last."""
        for site in self.sites.values():
            for model in site.unit.lanes:
                site.unit.worker_ready(model)
        while True:
            await asyncio.sleep(0.05)
            model = self.names[min(int(self.draw.expovariate(6 / len(self.names))), len(self.names) - 1)]
            self.count += 1
            request = Request(
                f"chatcmpl-{self.count}-0", model,
                self.draw.choices(range(300), k=self.draw.randrange(8, 120)),
                self.draw.randrange(10, 80), Sampling(temperature=0.0), frozenset(), key="anna",
            )  # fmt: skip
            try:
                stream = self.sites[self.entries[model].device].unit.submit(request)
            except MuxdError:
                continue
            self.streams.add(stream)


async def main(devices: int, models: int) -> None:
    host = PlayedHost(devices, models)
    door = Scripted(Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), {}, frozenset()))
    door.operator = host.service
    app = make_app(door, max_body=1 << 20, metrics=HttpMetrics(CollectorRegistry()), texts=door)
    runner = make_runner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    counting = asyncio.create_task(host.service.feed.count(host.observer.tokens_out))
    try:
        await host.play()
    finally:
        counting.cancel()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
