"""The routes of the local door: each asks the AdminService one thing."""

import asyncio

from aiohttp import web

from muxd.admin.answers import SERVICE, answer, feed, read, tell
from muxd.admin.schemas import (
    Drain,
    LoadModel,
    MoveModel,
    PinModel,
    PolicyChange,
    QuotaChange,
    Replan,
    SleepModel,
    Stopping,
    UnloadModel,
    WakeModel,
)


def routes() -> list[web.RouteDef]:
    """Everything under /v0/."""
    return [
        web.get("/v0/status", _status),
        web.get("/v0/ps", _ps),
        web.get("/v0/models", _models),
        web.get("/v0/devices", _devices),
        web.get("/v0/quota", _quota),
        web.post("/v0/quota", _set_quota),
        web.get("/v0/policy", _policy),
        web.post("/v0/policy", _set_policy),
        web.post("/v0/load", _load),
        web.post("/v0/unload", _unload),
        web.post("/v0/sleep", _sleep),
        web.post("/v0/wake", _wake),
        web.post("/v0/pin", _pin),
        web.post("/v0/move", _move),
        web.post("/v0/replan", _replan),
        web.get("/v0/host", _host),
        web.post("/v0/drain", _drain),
        web.post("/v0/reload", _reload),
        web.get("/v0/audit", _audit),
        web.get("/v0/why/{id:.+}", _why),
        web.get("/v0/trace", _trace),
        web.get("/v0/events", _events),
        web.get("/v0/watch", _watch),
        web.get("/v0/events/follow", _follow),
        web.get("/v0/keys", _keys),
        web.get("/v0/logs", _logs),
        web.get("/v0/logs/follow", _follow_log),
        web.post("/v0/stop", _stop),
    ]


async def _status(request: web.Request) -> web.Response:
    return answer(request.app[SERVICE].status())


async def _ps(request: web.Request) -> web.Response:
    return answer(request.app[SERVICE].ps())


async def _models(request: web.Request) -> web.Response:
    return answer(request.app[SERVICE].models())


async def _devices(request: web.Request) -> web.Response:
    # A driver in trouble takes its time to say so.
    return answer(await asyncio.to_thread(request.app[SERVICE].devices))


async def _quota(request: web.Request) -> web.Response:
    return answer(request.app[SERVICE].quota())


async def _set_quota(request: web.Request) -> web.Response:
    return answer(request.app[SERVICE].set_quota(await read(request, QuotaChange)))


async def _policy(request: web.Request) -> web.Response:
    return answer(request.app[SERVICE].policy())


async def _set_policy(request: web.Request) -> web.Response:
    return answer(request.app[SERVICE].set_policy((await read(request, PolicyChange)).policy))


async def _load(request: web.Request) -> web.StreamResponse:
    return await tell(request, request.app[SERVICE].load(await read(request, LoadModel)))


async def _unload(request: web.Request) -> web.StreamResponse:
    return await tell(request, request.app[SERVICE].unload(await read(request, UnloadModel)))


async def _sleep(request: web.Request) -> web.StreamResponse:
    return await tell(request, request.app[SERVICE].sleep(await read(request, SleepModel)))


async def _wake(request: web.Request) -> web.StreamResponse:
    return await tell(request, request.app[SERVICE].wake(await read(request, WakeModel)))


async def _pin(request: web.Request) -> web.Response:
    return answer(request.app[SERVICE].pin(await read(request, PinModel)))


async def _move(request: web.Request) -> web.StreamResponse:
    return await tell(request, request.app[SERVICE].move(await read(request, MoveModel)))


async def _replan(request: web.Request) -> web.StreamResponse:
    return await tell(request, request.app[SERVICE].replan(await read(request, Replan)))


async def _host(request: web.Request) -> web.Response:
    return answer(await request.app[SERVICE].host_view())


async def _drain(request: web.Request) -> web.StreamResponse:
    return await tell(request, request.app[SERVICE].drain(await read(request, Drain)))


async def _reload(request: web.Request) -> web.StreamResponse:
    return await tell(request, request.app[SERVICE].reload())


async def _audit(request: web.Request) -> web.Response:
    return answer(request.app[SERVICE].audit())


async def _why(request: web.Request) -> web.Response:
    return answer(request.app[SERVICE].why(request.match_info["id"]))


async def _trace(request: web.Request) -> web.Response:
    return answer(request.app[SERVICE].trace())


async def _events(request: web.Request) -> web.Response:
    return answer(request.app[SERVICE].happened(request.query.get("model", "")))


async def _follow(request: web.Request) -> web.StreamResponse:
    return await tell(request, request.app[SERVICE].follow(request.query.get("model", "")))


async def _watch(request: web.Request) -> web.StreamResponse:
    return await feed(request, request.app[SERVICE].watch)


async def _keys(request: web.Request) -> web.Response:
    return answer(request.app[SERVICE].keys())


async def _logs(request: web.Request) -> web.Response:
    return answer(request.app[SERVICE].logged())


async def _follow_log(request: web.Request) -> web.StreamResponse:
    return await tell(request, request.app[SERVICE].follow_log())


async def _stop(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    accepted = answer(Stopping(pid=service.status().pid), status=202)
    service.stop()
    return accepted
