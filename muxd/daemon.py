"""The parent process: wires every room together, lives until told to stop, leaves nothing behind.

The only file that knows all rooms. It decides nothing: it reads models, opens accounts in the ledger, starts
doors and supervisors, and on SIGTERM takes everything down in the reverse order.
"""

import asyncio
import faulthandler
import logging
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from itertools import count
from pathlib import Path

import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry

from muxd.admin.client import socket_path
from muxd.admin.schemas import AdminService
from muxd.admin.server import AdminServer
from muxd.admin_service import AdminService as DaemonService
from muxd.api.app import make_app, make_runner
from muxd.api.guests import GuestSite, HttpLimits
from muxd.api.listen import BACKLOG, handed, is_local, listeners
from muxd.api.metrics import HttpMetrics
from muxd.api.texts import text_pool
from muxd.api.tls import Certificate
from muxd.api.traces import trace_requests
from muxd.clock import MonotonicClock
from muxd.config import Config, DeviceConfig
from muxd.device.base import Device, is_gpu
from muxd.device.choose import open_device
from muxd.device.device_metrics import DeviceMetrics
from muxd.device.nvml import Nvml, NvmlMissing, Reading
from muxd.engine.metrics import Metrics
from muxd.engine.observer import Observer
from muxd.engine.request import Request
from muxd.engine.slo import Slo
from muxd.engine.stream import TokenStream
from muxd.errors import ConfigError, MuxdError
from muxd.fleet import notify
from muxd.fleet.adapters import Adapter, served
from muxd.fleet.build import open_site
from muxd.fleet.catalog import Entry
from muxd.fleet.descriptors import for_clients, raise_limit
from muxd.fleet.drop_ins import DropIns
from muxd.fleet.events import Events
from muxd.fleet.gate import Gate, Taking
from muxd.fleet.gauges import Gauges
from muxd.fleet.learnt import Keeper, file_of
from muxd.fleet.log_lines import LogLines
from muxd.fleet.planning import Planning
from muxd.fleet.pool_sizes import counts_workers, pool_sizes, workers_budget
from muxd.fleet.popularity import Popularity
from muxd.fleet.reloader import Reloader, Source
from muxd.fleet.replanner import Replanner, watch
from muxd.fleet.roster import Roster
from muxd.fleet.routing import Routing
from muxd.fleet.supervisor import Progress
from muxd.fleet.wishes import Wishes
from muxd.fleet.zygote import Zygote
from muxd.link.daemon_end import DaemonEnd, private_directory
from muxd.link.exits import STACKS
from muxd.pool.arena import Arena
from muxd.sizes import size
from muxd.watch.facts import Facts
from muxd.watch.feed import Feed
from muxd.watch.history import History

_log = logging.getLogger("muxd")

_AUDIT_PERIOD = 5.0  # seconds between audits of the ledger while nothing is served
_HTTP_GRACE = 2.0  # seconds that handlers get to write their last words


def run(
    config: Config,
    on_ready: Callable[[AdminService], None] = lambda service: None,
    on_progress: Progress = lambda model, done, total: None,
    source: Source | None = None,
) -> int:
    """Serve until SIGTERM, SIGINT or ``muxctl stop``; returns the exit code.

    ``on_ready`` is called once every model is ready or has failed. ``source``: what SIGHUP reads again.
    Raises ConfigError when the daemon cannot start at all.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Daemon(config, source).live(on_ready, on_progress))


class Daemon:
    """What the HTTP door serves from (``muxd.api.serving.Serving``), and everybody's lifetime."""

    def __init__(self, config: Config, source: Source | None = None):
        if not config.model:
            raise ConfigError("no [[model]] is configured: add one with name and path, or try --demo")
        self.config, self.source = config, source
        self.clock = MonotonicClock()
        self.entries = {one.name: Entry(one, config.adapters(one.name)) for one in config.bases}
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.popularity = Popularity(watch(config.placement), self.clock.now())
        targets = {m.name: Slo.of(m) for m in config.model}
        self.observer = Observer(self.metrics, targets, self.popularity)
        self.events = Events(time.time)
        self.texts = text_pool(config.text)
        self.gate, self.asked_to_reload = Gate(), asyncio.Event()
        self.address = ""
        self._told = notify.take()

    # ---- the life ---------------------------------------------------------------------------------

    async def live(self, on_ready: Callable[[AdminService], None], on_progress: Progress) -> int:
        self._on_signals()
        self.log_lines = LogLines(asyncio.get_running_loop())
        logging.getLogger().addHandler(self.log_lines)
        self.files = raise_limit()
        self.devices: dict[str, Device] = {}
        try:
            for device in self.config.devices:
                await asyncio.to_thread(self._open_device, device)
            self.zygote = Zygote(kernels=any(map(is_gpu, self.devices.values())))
            try:
                await asyncio.to_thread(self.zygote.start)  # it imports while models are read
                await self._live(on_ready, on_progress)
            finally:
                await asyncio.to_thread(self.zygote.close)
        finally:
            for opened in self.devices.values():
                await asyncio.to_thread(opened.close)
            logging.getLogger().removeHandler(self.log_lines)
        return 0

    def _open_device(self, config: DeviceConfig) -> None:
        key = "device.name" if self.config.device else "server.device"
        limit = size(config.memory, key="device.memory") if config.memory else 0
        opened = open_device(config.name, key=key, cpus=config.cores, limit=limit)
        self.devices[config.name if self.config.device else opened.name] = opened

    async def _live(self, on_ready: Callable[[AdminService], None], on_progress: Progress) -> None:
        self.readings: Callable[[], list[Reading]] = list  # no GPU, nothing to read
        with suppress(NvmlMissing):
            self.readings = Nvml().read
            DeviceMetrics(self.registry, self.readings)
        arenas: dict[str, Arena] = {}
        directory = private_directory()
        self.texts.start()
        try:
            gpu = any(is_gpu(device) for device in self.devices.values())
            await asyncio.gather(*(entry.read(self.texts, gpu=gpu) for entry in self.entries.values()))
            pools = pool_sizes(self.config, self.devices, self.entries.values())
            self._open_arenas(arenas, pools)
            self.planning = await asyncio.to_thread(Planning, self.config, self.devices, pools)
            await asyncio.to_thread(self.planning.start, self.entries.values())
            self.link = DaemonEnd(directory)
            try:
                self._make_sites(arenas)
                self._make_roster(on_progress)
                await self._serve(on_ready)
            finally:
                self.link.close()
        finally:
            await self.texts.close()
            shutil.rmtree(directory, ignore_errors=True)
            for arena in arenas.values():
                arena.close()

    async def _serve(self, on_ready: Callable[[AdminService], None]) -> None:
        """Doors open, supervisors running, until ``stop``; then everything down, in the reverse order."""
        report = self.operator = self._make_report()
        self.reloader = reloader = self._make_reloader(report)
        async with AsyncExitStack() as stack:
            # The local door first: a second daemon hears who already runs, not that a port is taken.
            admin = AdminServer(report, socket_path(self.config.server.socket))
            await admin.start()
            stack.push_async_callback(admin.close)
            runner = self._make_http()
            stack.push_async_callback(runner.cleanup)
            await self._open_http(runner)
            stack.callback(report.feed.close)  # who watches is told before the door closes
            counts = asyncio.create_task(report.feed.count(self.observer.tokens_out))
            stack.callback(counts.cancel)
            kept = self._kept(report)
            for one in kept:
                await one.take_up()
                stack.callback(asyncio.create_task(one.run()).cancel)
            self.roster.start()
            waking = asyncio.create_task(self.roster.waker.run())
            stack.callback(waking.cancel)
            stack.push_async_callback(self.roster.close)
            watched = asyncio.create_task(notify.keep_watch(self._told))
            stack.callback(watched.cancel)
            idle = asyncio.create_task(self._audit_when_idle())
            stack.callback(idle.cancel)
            if len(self.sites) > 1:
                replan = asyncio.create_task(self.replanner.run())
                stack.callback(replan.cancel)
            announce = asyncio.create_task(self._announce(report, on_ready, reloader))
            stack.callback(announce.cancel)
            await self.gate.stopping.wait()
            notify.stopping(env=self._told)
            await self._drain(reloader.config.server.shutdown_grace)
            for one in kept:
                await one.save()

    async def _drain(self, grace: float) -> None:
        """Until no unit has a request; one that is empty may get some from another whose model moves."""
        units, end = [site.unit for site in self.sites.values()], self.clock.now() + grace
        over = False
        while not over:
            left = end - self.clock.now()
            over = left <= 0
            await asyncio.gather(*(unit.drain(max(0.0, left)) for unit in units))
            over = over or all(unit.idle for unit in units)

    def _make_http(self) -> web.AppRunner:
        max_body = size(self.config.server.max_body, key="server.max_body")
        server = self.config.server
        app = make_app(
            self, max_body=max_body, metrics=HttpMetrics(self.registry, vllm_names=server.vllm_metrics),
            texts=self.texts, clock=self.clock,
            limits=self._http_limits(), keys=Path(server.keys) if server.keys else None,
            cors_origins=server.cors_origins, allowed_hosts=[*server.hosts, *server.allowed_hosts],
            strict=server.strict,
        )  # fmt: skip
        trace_requests(app, server.traces, self.registry)
        return make_runner(app, shutdown_timeout=_HTTP_GRACE)

    def _http_limits(self) -> HttpLimits:
        config, files = self.config.limits, self.files
        ranks = sum(entry.config.tp for entry in self.entries.values())
        connections = for_clients(files, ranks, config.connections)
        if connections < config.connections:
            _log.warning(
                "limits.connections: %d instead of %d, for there may be %d open files; raise the limit "
                "(ulimit -n, LimitNOFILE)", connections, config.connections, files,
            )  # fmt: skip
        memory = size(config.body_memory, key="limits.body_memory")
        return HttpLimits(
            connections, config.header_timeout, config.body_timeout, config.idle_timeout,
            config.write_timeout, memory,
        )  # fmt: skip

    async def _open_http(self, runner: web.AppRunner) -> None:
        server = self.config.server
        tls = Certificate(server.tls_cert, server.tls_key, self.clock).context if server.tls_cert else None
        await runner.setup()
        try:
            sockets = handed(self._told) or await asyncio.to_thread(listeners, server.hosts, server.port)
        except OSError as error:
            raise ConfigError(
                f"server.port: cannot listen on {', '.join(server.hosts)}, port {server.port}: "
                f"{error.strerror or error}; choose another --port or --host"
            ) from None
        for listener in sockets:
            if not is_local(listener) and not server.keys:
                _log.warning(
                    "listening on %s: whoever reaches this address can use every model; see server.keys",
                    listener.getsockname()[0],
                )
            await GuestSite(runner, listener, backlog=BACKLOG, ssl_context=tls).start()
        host, port = runner.addresses[0][:2]
        scheme = "http" if tls is None else "https"
        self.address = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def _announce(
        self, report: DaemonService, on_ready: Callable[[AdminService], None], reloader: Reloader
    ) -> None:
        """Once; after that, and not before, the configuration may change."""
        await self.roster.settled()
        states = [model.state for model in self.models().values()]
        notify.ready(
            f"{states.count('ready')} of {len(states)} models ready on {self.address}", env=self._told
        )
        on_ready(report)
        await reloader.run()

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.asked_to_reload.set)
        for number in (STACKS, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        if sys.__stderr__ is not None:
            # Where the daemon stands: written by a handler in C, so also when the loop hangs.
            faulthandler.register(STACKS, file=sys.__stderr__)

    async def _audit_when_idle(self) -> None:
        """Design §3: every block is free, cached or owned once. A fault is loud and harms nobody yet."""
        while True:
            await asyncio.sleep(_AUDIT_PERIOD)
            for site in self.sites.values():
                if site.unit.idle:
                    try:
                        site.arena.ledger.audit()
                    except MuxdError as error:
                        _log.critical("%s: %s", site.name, error.message)

    # ---- wiring -----------------------------------------------------------------------------------

    def _open_arenas(self, arenas: dict[str, Arena], pools: Mapping[str, int]) -> None:
        pool, opened = self.config.pool, [entry.opened for entry in self.entries.values()]
        # Every model may have been on every device.
        lendable = sum(model.plan.bytes for model in opened if model is not None) if pool.grow else 0
        for name, device in self.devices.items():
            arenas[name] = Arena(device, pools[name], pool.block_bytes, lendable)

    def _make_sites(self, arenas: dict[str, Arena]) -> None:
        ids, spawns, several = count(1), count(1), len(self.devices) > 1
        self.sites = {
            name: open_site(
                name, device, arenas[name], self.config, grow=self.config.pool.grow, link=self.link,
                zygote=self.zygote, clock=self.clock, observer=self.observer, ids=ids, spawns=spawns,
                tell=self.events.teller(name if several else ""), budget=workers_budget(self.config, device),
                counts_workers=counts_workers(self.config, device),
            )
            for name, device in self.devices.items()
        }  # fmt: skip

    def _make_roster(self, on_progress: Progress) -> None:
        self.roster = Roster(
            entries=self.entries, sites=self.sites, clock=self.clock, progress=on_progress,
            gauges=Gauges(self.registry, self.metrics, self.sites, self.entries),
            place=lambda entry: self.planning.place(entry, self.entries.values()), texts=self.texts,
            residency=self.config.residency,
            demands=lambda names: self.popularity.look(names, self.clock.now()),
        )  # fmt: skip
        self.roster.open()
        self.routing = Routing(self.entries, self.sites)
        self.replanner = Replanner(
            self.config.placement, self.planning, self.roster, self.popularity, self.events, self.clock
        )

    def _kept(self, report: DaemonService) -> list[Wishes | Keeper]:
        """What survives a restart, in the order to take it up; nothing, where there is no configuration."""
        if self.source is None:
            return []
        wishes = Wishes(
            path=file_of(self.source.file, "set"), entries=self.entries, set_quota=report.give_quota,
            altered=self.roster.altered,
        )  # fmt: skip
        keeper = Keeper(
            path=file_of(self.source.file), entries=self.entries, sites=self.sites,
            popularity=self.popularity, clock=self.clock,
        )  # fmt: skip
        return [wishes, keeper]

    def _make_feed(self) -> Feed:
        now = self.clock.now()
        facts = Facts(
            entries=self.entries, sites=self.sites, observer=self.observer, events=self.events,
            history=History(now, self.observer.tokens_out), clock=self.clock, wall=time.time,
            address=lambda: self.address,
        )  # fmt: skip
        return Feed(facts, self.clock)

    def _make_report(self) -> DaemonService:
        return DaemonService(feed=self._make_feed(),
            roster=self.roster, config=self.config, entries=self.entries, sites=self.sites,
            observer=self.observer, clock=self.clock, address=lambda: self.address, stop=self.stop,
            readings=self.readings, events=self.events, gate=self.gate, log_lines=self.log_lines,
            replanner=self.replanner, reloaded=lambda: self.reloader.asked(), texts=self.texts,
            drop_ins=DropIns(self.source.file) if self.source else None,
            file=str(self.source.file.absolute()) if self.source else "",
        )  # fmt: skip

    def _make_reloader(self, report: DaemonService) -> Reloader:
        return Reloader(
            config=self.config, source=self.source, roster=self.roster, observer=self.observer,
            events=self.events, set_policy=report.set_policy, set_quota=report.give_quota, told=self._told,
            wish=self.asked_to_reload, drop_ins=report.drop_ins,
        )  # fmt: skip

    # ---- Serving (the HTTP door) ------------------------------------------------------------------

    @property
    def taking(self) -> Taking:
        return self.gate.taking

    def models(self) -> Mapping[str, Entry | Adapter]:
        return served(self.entries)

    def submit(self, request: Request) -> TokenStream:
        self.gate.admit()
        return self.routing.submit(request)

    def check_room(self, request: Request) -> None:
        self.routing.check_room(request)

    def ahead(self, request: Request) -> int | None:
        return self.routing.ahead(request)

    def stop(self) -> None:
        """Begin the orderly end. May be called twice."""
        self.gate.stopping.set()
