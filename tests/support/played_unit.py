"""Two models of a unit that works, their workers played, behind the real AdminService."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from prometheus_client import CollectorRegistry

from muxd.admin.client import AdminClient
from muxd.admin_service import AdminService
from muxd.clock import VirtualClock
from muxd.config import Config, ModelConfig, QuotaConfig
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
from muxd.fleet.accounts import place_of
from muxd.fleet.catalog import Entry
from muxd.fleet.events import Events
from muxd.fleet.gate import Gate
from muxd.fleet.gauges import Gauges
from muxd.fleet.roster import Roster
from muxd.fleet.site import Site
from muxd.messages import BatchDone, Decode, Prefill, Sampling
from muxd.pool.arena import Arena
from muxd.watch.facts import Facts
from muxd.watch.feed import Feed
from muxd.watch.history import History
from support.lanes import lane_spec

T = TypeVar("T")
POOL, BLOCK = 1 << 20, 8192  # 128 blocks


class Bench:
    """Two models, their workers played by ``step``; the door is open while ``ask`` runs in a thread."""

    def __init__(self, path: Path):
        self.path, self.clock = path, VirtualClock(50.0)
        self.arena = Arena(Cpu(), POOL, BLOCK)
        self.arena.ledger.add_model("a.1", 2, 64, 16, row_tokens=4)
        self.arena.ledger.add_model("b_2", 4, 32, row_tokens=4)
        lanes = [lane_spec(name, 50, 4, 2, 60, 8, 100, 16) for name in ("a.1", "b_2")]
        scheduler = Scheduler(lanes, self.arena.ledger, Shares([50, 100]), Settings())
        targets = {"a.1": Slo(ttft=1.0)}
        metrics = Metrics(CollectorRegistry())
        observer = Observer(metrics, targets)
        self.sent: list[tuple[str, Prefill | Decode]] = []
        self.unit = Unit(scheduler, lambda model, c: self.sent.append((model, c)), self.clock, observer)
        quotas = {"a.1": QuotaConfig(min="128K", weight=2.0), "b_2": QuotaConfig()}
        entries = {
            name: Entry(ModelConfig(name, "/nowhere", quota=quota, ttft_slo=float(name == "a.1")))
            for name, quota in quotas.items()
        }
        nothing = cast(Any, None)  # nothing is spawned here
        device = Cpu(2)
        site = Site(name="cpu", device=device, arena=self.arena, unit=self.unit, link=nothing,
                    place=place_of(device, self.arena, Config()),
                    clock=self.clock, spawns=nothing, zygote=nothing)  # fmt: skip
        for name, entry in entries.items():
            entry.device, entry.lane = "cpu", scheduler.lanes[name]
        sites = {"cpu": site}
        roster = Roster(
            entries=entries, sites=sites, clock=self.clock, progress=nothing, place=nothing, texts=nothing,
            gauges=Gauges(CollectorRegistry(), metrics, sites, entries),
        )  # fmt: skip
        self.events = Events(lambda: 0.0)
        self.history = History(self.clock.now(), observer.tokens_out)
        self.facts = Facts(
            entries=entries, sites=sites, observer=observer, events=self.events, history=self.history,
            clock=self.clock, wall=lambda: 1_000_000.0, address=lambda: "http://x",
        )  # fmt: skip
        self.service = AdminService(
            feed=Feed(self.facts, self.clock),
            entries=entries, sites=sites, observer=observer, clock=self.clock, address=lambda: "http://x",
            stop=lambda: None, roster=roster, config=Config(), events=self.events,
            gate=Gate(), replanner=nothing, log_lines=nothing, reloaded=nothing,
        )  # fmt: skip
        for name in entries:
            self.unit.worker_ready(name)

    def submit(
        self, model: str, id: str, tokens: int = 2, prompt: int = 6, http_id: str = "x"
    ) -> TokenStream:
        sampling = Sampling(temperature=0.0)
        return self.unit.submit(Request(id, model, [1] * prompt, tokens, sampling, frozenset(), http_id))

    def step(self, seconds: float = 0.1) -> None:
        """The oldest batch is done."""
        model, command = self.sent.pop(0)
        count = len(command.chunks) if isinstance(command, Prefill) else len(command.seqs)
        self.clock.advance(seconds)
        self.unit.batch_done(model, BatchDone(command.batch, [5] * count, seconds))

    async def ask(self, call: Callable[[AdminClient], T]) -> T:
        return await asyncio.to_thread(call, AdminClient(self.path))
