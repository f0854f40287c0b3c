"""The deployments on Ray Serve: a node on each host, the register of their reports, the ingress.

Requests go from the ingress to a host's muxd over HTTP; Ray carries reports, a few a second.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import uuid4

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.handle import DeploymentHandle
from ray.util import metrics
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from muxd.placement.host_view import HostView
from muxd.ray.front import Front
from muxd.ray.health import lost
from muxd.ray.host_daemon import HostDaemon
from muxd.ray.moving import Moving
from muxd.ray.plans import assign
from muxd.ray.proxy import ProxyAnswer, ProxyCall, Stream
from muxd.ray.replanning import Order
from muxd.ray.reports import GONE, STARTING, HostReport, Seen
from muxd.ray.saying import Headers
from muxd.ray.scaling import RESOURCE
from muxd.ray.settings import Arguments, arguments, plan_files

_log = logging.getLogger(__name__)
_PERIOD = 0.25  # seconds between two reports
_VIEWED = 5.0  # at most between two views of what its models are asked for
_FORGOTTEN = 60.0  # seconds without a report after which a host is no longer told of
# Without its head a Ray cluster is lost anyway; so no other host that is lost takes requests of others along.
_ON_THE_HEAD = {"node:__internal_head__": 0.001}
_MANY = 100_000  # requests at once: hosts have queues with bounds, and refuse


class Register:
    """The newest report of each host, and which file each serves. When it is lost, reports make it anew, the
    files as they were given."""

    def __init__(self, files: Mapping[str, str], replan: float = 0.0):
        self.hosts = Moving(files, uuid4().hex[:8])
        self._reports: dict[str, tuple[HostReport, float]] = {}
        self._looking = asyncio.create_task(_often("replan", self._look, replan)) if replan else None

    async def assign(self, host: str) -> tuple[str, str]:
        """Name and text of the file that a host which has come shall serve."""
        there = [one.report for one in await self.seen() if not lost(one)]
        load = Counter[str]()
        for report in there:
            load[report.plan] += report.load
        files = self.hosts.files
        name = assign(list(files), {one.host: one.plan for one in there}, host, load)
        await self.report(HostReport(host, "", STARTING, plan=name))
        return name, files[name]

    async def report(self, report: HostReport) -> list[Order]:
        """Returns what the host shall do, again and again until it is ``done``."""
        self._reports[report.host] = report, time.monotonic()
        return self.hosts.orders(report.host)

    async def view(self, host: str, view: HostView) -> None:
        self.hosts.viewed(host, view, time.monotonic())

    async def done(self, id: str, error: str) -> None:
        """``error``: why it could not be; "": it is."""
        self.hosts.done(id, error, time.monotonic())

    async def _look(self) -> None:
        await self.hosts.look(await self.seen(), time.monotonic())

    async def __del__(self) -> None:
        if self._looking is not None:
            self._looking.cancel()

    async def seen(self) -> list[Seen]:
        now = time.monotonic()
        self._reports = {host: one for host, one in self._reports.items() if now - one[1] < _FORGOTTEN}
        return [Seen(report, now - came) for report, came in self._reports.values()]


class Node:
    """On each host: has a muxd there, and reports of it."""

    def __init__(self, register: DeploymentHandle, given: Arguments):
        context = ray.get_runtime_context()
        self._register, self._given = register, given
        self._daemon = HostDaemon(
            context.get_node_id(), ray.util.get_node_ip_address(), given.port, given.socket
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._carrying: dict[str, asyncio.Task[None]] = {}  # by the order's id
        self._last = GONE
        self._begin = asyncio.create_task(self._start())

    async def _start(self) -> None:
        self._daemon.expect(*await self._register.assign.remote(self._daemon.host))
        self._tasks.append(asyncio.create_task(_often("report", self._tell)))
        await asyncio.to_thread(self._daemon.begin)
        if self._given.replan:
            period = min(self._given.replan, _VIEWED)
            self._tasks.append(asyncio.create_task(_often("tell of its models", self._view, period)))

    async def _tell(self) -> None:
        report = await asyncio.to_thread(self._daemon.report)
        self._last = report.taking
        for order in await self._register.report.remote(report):
            if order.id not in self._carrying:
                self._carrying[order.id] = asyncio.create_task(self._carry_out(order))

    async def _view(self) -> None:
        view = await asyncio.to_thread(self._daemon.admin.host_view)
        await self._register.view.remote(self._daemon.host, view)

    async def _carry_out(self, order: Order) -> None:
        try:
            error = await asyncio.to_thread(self._daemon.carried_out, order)
            await self._register.done.remote(order.id, error)
        finally:
            self._carrying.pop(order.id)  # unless that was heard, it comes again

    async def check_health(self) -> None:
        """Ray Serve's: where this raises, the node is replaced, and begins with a muxd of its own."""
        if self._begin.done():
            self._begin.result()
            if self._last == GONE:
                await asyncio.to_thread(self._daemon.admin.status)

    async def __del__(self) -> None:
        for task in (self._begin, *self._tasks, *self._carrying.values()):
            task.cancel()
        await asyncio.to_thread(self._daemon.end, self._given.drain)


class Ingress:
    """What clients speak to."""

    def __init__(self, register: DeploymentHandle, nodes: DeploymentHandle):
        self._register = register
        self._front = Front()
        self._listening = asyncio.create_task(_often("ask for reports", self._hear))
        self._ended = metrics.Counter(
            "muxd_fleet_requests", "Answers begun, by status.", tag_keys=("status",)
        )
        self._retries = metrics.Counter("muxd_fleet_retries", "Requests sent to another host than the first.")
        self._hosts = metrics.Gauge(
            "muxd_fleet_hosts", "Hosts that get requests, and that get none.", tag_keys=("state",)
        )
        self._told = 0

    async def __call__(self, request: Request) -> Response:
        call = ProxyCall(
            method=request.method,
            path=request.scope["raw_path"].decode("latin-1")
            if "raw_path" in request.scope
            else request.url.path,
            query=request.scope["query_string"].decode("latin-1"),
            headers=[
                (name.decode("latin-1"), value.decode("latin-1")) for name, value in request.scope["headers"]
            ],
            body=await request.body(),
            client=request.client.host if request.client else "",
            id=request.headers.get("x-request-id", ""),
        )
        answer = await self._front.answer(call)
        self._ended.inc(tags={"status": str(answer.status)})
        return response(answer)

    async def _hear(self) -> None:
        seen = await self._register.seen.remote()
        proxy = self._front.proxy
        proxy.heard(seen)
        out = list(self._front.hosts.why_out().values())
        self._hosts.set(out.count(""), tags={"state": "in"})
        self._hosts.set(len(out) - out.count(""), tags={"state": "out"})
        if proxy.retries > self._told:
            self._retries.inc(proxy.retries - self._told)
            self._told = proxy.retries

    async def __del__(self) -> None:
        self._listening.cancel()
        await self._front.close()


def response(answer: ProxyAnswer) -> Response:
    body = answer.body
    found = _Streamed(body, answer.status) if isinstance(body, Stream) else Response(body, answer.status)
    length = [] if isinstance(body, Stream) else [("content-length", str(len(body)))]
    found.raw_headers = _raw([*answer.headers, *length])
    return found


class _Streamed(StreamingResponse):
    """Closes what it reads from, however it ends."""

    def __init__(self, stream: Stream, status: int):
        super().__init__(stream, status)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


def _raw(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Without what Ray Serve's proxy sets itself, to the same value."""
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return [one for one in raw if one[0] != b"x-request-id"]


async def _often(what: str, do: Callable[[], Awaitable[None]], period: float = _PERIOD) -> None:
    """Again and again, whatever goes wrong: the other end may be lost, and comes again."""
    while True:
        try:
            await do()
        except Exception as error:
            _log.warning("cannot %s: %s", what, type(error).__name__)
        await asyncio.sleep(period)


def build(args: Mapping[str, Any]) -> Application:
    """Raises ConfigError."""
    given = arguments(args)
    files = plan_files(given.plan)
    light = {"num_cpus": 0, "resources": _ON_THE_HEAD}
    quiet = {"enable_access_log": False}  # a line for every report; of requests hosts have their own
    register = (
        serve.deployment(Register)
        .options(ray_actor_options=light, logging_config=quiet)
        .bind(files, given.replan)
    )
    nodes = serve.deployment(Node).options(
        ray_actor_options={"num_cpus": 0, "num_gpus": given.gpus, "resources": {RESOURCE: 1}},
        graceful_shutdown_timeout_s=given.drain * 3 + 10,
        health_check_period_s=2.0,
        logging_config=quiet,
        **_how_many(given.hosts),
    )
    ingress = serve.deployment(Ingress).options(
        num_replicas=given.ingresses,
        max_ongoing_requests=_MANY,
        ray_actor_options=light,
        logging_config=quiet,
        graceful_shutdown_timeout_s=given.drain,
    )
    return ingress.bind(register, nodes.bind(register, given))


def _how_many(hosts: int) -> dict[str, Any]:
    if hosts:
        return {"num_replicas": hosts}
    policy = AutoscalingPolicy(policy_function="muxd.ray.scaling:one_a_node")
    limits = AutoscalingConfig(min_replicas=1, max_replicas=_MANY, upscale_delay_s=1.0, policy=policy)
    return {"autoscaling_config": limits}
