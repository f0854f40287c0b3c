"""The parent process: wires every room together, lives until told to stop, leaves nothing behind.

The only file that knows all rooms. It decides nothing: it reads models, opens accounts in the ledger, starts
doors and hosts, and on SIGTERM takes everything down in the reverse order.
"""

import asyncio
import logging
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry

from muxd.admin.client import socket_path
from muxd.admin.schemas import Steward
from muxd.admin.server import AdminServer
from muxd.api.app import make_app, make_runner
from muxd.api.metrics import HttpMetrics
from muxd.clock import MonotonicClock
from muxd.config import Config, SchedulerConfig, size
from muxd.device.cpu import Cpu
from muxd.engine.forecast import Forecast
from muxd.engine.lane import Lane, LaneSpec
from muxd.engine.metrics import Metrics
from muxd.engine.observer import Observer
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.engine.slo import Slo
from muxd.engine.stream import TokenStream
from muxd.engine.unit import Unit
from muxd.errors import ConfigError, MuxdError
from muxd.fleet import notify
from muxd.fleet.catalog import Entry
from muxd.fleet.host import Host, Progress
from muxd.link.daemon_end import DaemonEnd, private_directory
from muxd.messages import BatchDone, BatchFailed, Decode, FromWorker, Prefill, Ready, Refused, Setup
from muxd.pool.arena import Arena
from muxd.steward import Steward as DaemonSteward

_log = logging.getLogger("muxd")

_AUDIT_PERIOD = 5.0  # seconds between audits of the ledger while nothing is served
_HTTP_GRACE = 2.0  # seconds that handlers get to write their last words


def run(
    config: Config,
    on_ready: Callable[[Steward], None] = lambda steward: None,
    on_progress: Progress = lambda model, done, total: None,
) -> int:
    """Serve until SIGTERM, SIGINT or ``muxctl stop``; returns the exit code.

    ``on_ready`` is called once every model is ready or has failed. Raises ConfigError when the daemon
    cannot start at all.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Daemon(config).live(on_ready, on_progress))


class Daemon:
    """What the HTTP door serves from (``muxd.api.serving.Serving``), and everybody's lifetime."""

    def __init__(self, config: Config):
        if not config.model:
            raise ConfigError("no [[model]] is configured: add one with name and path, or try --demo")
        self.config = config
        _warn_of_idle_settings(config)
        self.clock = MonotonicClock()
        self.device = Cpu()
        self.entries = {model.name: Entry(model) for model in config.model}
        self.hosts: dict[str, Host] = {}
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.observer = Observer(self.metrics, {m.name: Slo(m.ttft_slo, m.tpot_slo) for m in config.model})
        self.stopping = asyncio.Event()
        self.address = ""

    # ---- the life ---------------------------------------------------------------------------------

    async def live(self, on_ready: Callable[[Steward], None], on_progress: Progress) -> int:
        self._on_signals()
        self.arena = Arena(
            self.device, size(self.config.pool.bytes, key="pool.bytes"), self.config.pool.block_bytes
        )
        directory = private_directory()
        try:
            await asyncio.gather(*(asyncio.to_thread(entry.open) for entry in self.entries.values()))
            self.link = DaemonEnd(directory, self._on_message, self._on_link_lost)
            try:
                self._make_unit()
                self._make_hosts(on_progress)
                await self._serve(on_ready)
            finally:
                self.link.close()
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            self.arena.close()
        return 0

    async def _serve(self, on_ready: Callable[[Steward], None]) -> None:
        """Doors open, hosts running, until ``stop``; then everything down, in the reverse order."""
        report = self._make_report()
        async with AsyncExitStack() as stack:
            # The local door first: a second daemon hears who already runs, not that a port is taken.
            admin = AdminServer(report, socket_path(self.config.server.socket))
            await admin.start()
            stack.push_async_callback(admin.close)
            runner = self._make_http()
            stack.push_async_callback(runner.cleanup)
            await self._open_http(runner)
            tasks = [asyncio.create_task(host.run()) for host in self.hosts.values()]
            stack.push_async_callback(self._end_hosts, tasks)
            idle = asyncio.create_task(self._audit_when_idle())
            stack.callback(idle.cancel)
            announce = asyncio.create_task(self._announce(report, on_ready))
            stack.callback(announce.cancel)
            await self.stopping.wait()
            notify.stopping()
            await self.unit.drain(self.config.server.shutdown_grace)

    def _make_http(self) -> web.AppRunner:
        max_body = size(self.config.server.max_body, key="server.max_body")
        app = make_app(self, max_body=max_body, metrics=HttpMetrics(self.registry), clock=self.clock)
        return make_runner(app, shutdown_timeout=_HTTP_GRACE)

    async def _open_http(self, runner: web.AppRunner) -> None:
        server = self.config.server
        await runner.setup()
        site = web.TCPSite(runner, server.host, server.port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"server.port: cannot listen on {server.host}:{server.port}: {error.strerror or error}; "
                "choose another --port or --host"
            ) from None
        host, port = runner.addresses[0][:2]
        self.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def _announce(self, report: DaemonSteward, on_ready: Callable[[Steward], None]) -> None:
        for host in self.hosts.values():
            await host.settled.wait()
        states = [entry.state for entry in self.entries.values()]
        notify.ready(f"{states.count('ready')} of {len(states)} models ready on {self.address}")
        on_ready(report)

    async def _end_hosts(self, tasks: list[asyncio.Task[None]]) -> None:
        await asyncio.gather(*(host.stop() for host in self.hosts.values()))
        await asyncio.gather(*tasks)

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)

    async def _audit_when_idle(self) -> None:
        """Design §3: every block is free, cached or owned once. A fault is loud and harms nobody yet."""
        while True:
            await asyncio.sleep(_AUDIT_PERIOD)
            if self.unit.idle:
                try:
                    self.arena.ledger.audit()
                except MuxdError as error:
                    _log.critical("%s", error.message)

    # ---- wiring -----------------------------------------------------------------------------------

    def _make_unit(self) -> None:
        lanes = self._open_accounts()
        scheduler = self.config.scheduler
        settings = Settings(scheduler.drain_timeout, scheduler.prefill_tokens, scheduler.look_ahead)
        shares = Shares(self.device.rungs, scheduler.overbook)
        forecast = None
        if scheduler.admission == "slo":
            forecast = Forecast(self.observer.attainment.targets, settings.prefill_tokens)
        self.scheduler = Scheduler(
            lanes, self.arena.ledger, shares, settings, policy=scheduler.policy, forecast=forecast
        )
        self.unit = Unit(self.scheduler, self._send, self.clock, self.observer)
        self._watch()

    def _open_accounts(self) -> list[LaneSpec]:
        """Ledger accounts and lanes for every model whose folder could be read."""
        opened = [entry for entry in self.entries.values() if entry.opened is not None]
        for entry in opened:
            self._open_account(entry)
        lanes = []
        for entry in opened:
            try:
                lanes.append(self._lane(entry))
            except MuxdError as error:
                entry.error = error.message
                self.arena.ledger.remove_model(entry.name)
        return lanes

    def _open_account(self, entry: Entry) -> None:
        assert entry.opened is not None
        ledger, quota = self.arena.ledger, entry.config.quota
        bounds = (
            size(text, key=f"model.quota.{key} ({entry.name})", whole=self.arena.nbytes)
            // self.arena.block_bytes
            for key, text in (("min", quota.min), ("max", quota.max))
        )
        per_row = entry.opened.spec.blocks_per_row
        ledger.add_model(entry.name, per_row, max(1, ledger.total_blocks // per_row), *bounds)

    def _lane(self, entry: Entry) -> LaneSpec:
        row_tokens = entry.row_tokens(self.arena.block_bytes)
        capacity = self.arena.ledger.limit(entry.name)
        entry.fit(row_tokens, capacity)
        return LaneSpec(
            model=entry.name,
            share=entry.config.share or max(1, 100 // len(self.entries)),
            row_tokens=row_tokens,
            max_context=entry.max_context,
            max_running=entry.config.max_running,
            max_queue=entry.config.max_queue,
            capacity_rows=capacity,
        )

    def _make_hosts(self, on_progress: Progress) -> None:
        for entry in self.entries.values():
            if entry.error:
                _log.error("%s is not served: %s", entry.name, entry.error)
                continue
            self.hosts[entry.name] = Host(
                entry, self._setup(entry), device=self.device, pool_fd=self.arena.fd, unit=self.unit,
                clock=self.clock, link=self.link, progress=on_progress,
            )  # fmt: skip

    def _setup(self, entry: Entry) -> Setup:
        assert entry.opened is not None
        plan = entry.opened.plan
        return Setup(
            worker="",
            model=entry.name,
            folder=str(entry.opened.folder),
            dtype=entry.config.dtype,
            link=self.link.endpoint,
            device=self.device.name,
            pool_bytes=self.arena.nbytes,
            block_bytes=self.arena.block_bytes,
            max_rows=max(1, self.arena.total_blocks // entry.opened.spec.blocks_per_row),
            weights_bytes=plan.bytes,
            tensors=plan.tensors,
            cores=self.device.cores,
            max_context=entry.max_context,
        )

    def _make_report(self) -> DaemonSteward:
        return DaemonSteward(unit=self.unit,
            entries=self.entries, arena=self.arena, scheduler=self.scheduler, observer=self.observer,
            clock=self.clock, address=lambda: self.address, cores=self.device.cores, stop=self.stop,
        )  # fmt: skip

    def _watch(self) -> None:
        """Gauges that ask when somebody scrapes."""
        ledger = self.arena.ledger
        self.metrics.watch_blocks("", "free", lambda: ledger.free_blocks)
        for lane in self.scheduler.lanes.values():
            self._watch_lane(lane)

    def _watch_lane(self, lane: Lane) -> None:
        name, ledger = lane.spec.model, self.arena.ledger
        self.metrics.add_model(name)
        self.metrics.watch_queue(name, running=lambda: lane.admitted, waiting=lambda: lane.queued)
        self.metrics.watch_blocks(name, "used", lambda: ledger.usage()[name].blocks)

    # ---- the link ---------------------------------------------------------------------------------

    def _send(self, model: str, command: Prefill | Decode) -> None:
        self.link.send(self.hosts[model].identity, command)

    def _on_message(self, worker: str, message: FromWorker) -> None:
        host = self.hosts[worker.rpartition("/")[0]]
        match message:
            case BatchDone():
                self.unit.batch_done(host.entry.name, message)
            case Ready() | Refused():
                host.on_message(message)
            case BatchFailed():
                host.on_defect(f"failed in a batch: {message.error}")

    def _on_link_lost(self, worker: str, reason: str) -> None:
        self.hosts[worker.rpartition("/")[0]].on_defect(reason)

    # ---- Serving (the HTTP door) ------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        return not self.stopping.is_set()

    def models(self) -> Mapping[str, Entry]:
        return self.entries

    def submit(self, request: Request) -> TokenStream:
        return self.unit.submit(request)

    def stop(self) -> None:
        """Begin the orderly end. May be called twice."""
        self.stopping.set()


def _warn_of_idle_settings(config: Config) -> None:
    """Settings that are read and checked but steer nothing yet."""
    plain = SchedulerConfig()
    if config.scheduler.adapt_period != plain.adapt_period:
        _log.warning("scheduler.adapt_period has no effect yet: quotas do not move by themselves")
    for model in config.model:
        if model.quota.weight != 1.0:
            _log.warning("model.quota.weight (%s) has no effect yet: quotas are min and max", model.name)
