"""What an operator does over HTTP as muxctl does it over its socket: the same admin service, asked with a key
that has the right to act."""

from collections.abc import AsyncIterator

from aiohttp import web

from muxd.admin.schemas import LoadModel, MoveModel, PinModel, SleepModel, WakeModel
from muxd.api.context import context, find_model
from muxd.api.guard import check_actions, check_operator
from muxd.api.replies import json_response
from muxd.errors import BadRequest
from muxd.fleet.steps import Step


async def why(request: web.Request) -> web.Response:
    """Where a request's time went. Raises NotFound."""
    check_actions(request)
    return json_response(context(request).serving.operator.why(request.match_info["id"]))


async def load(request: web.Request) -> web.Response:
    """A model that is known; others only muxctl brings, for it can name a folder."""
    return await _last(context(request).serving.operator.load(LoadModel(_model(request), _device(request))))


async def sleep(request: web.Request) -> web.Response:
    return await _last(context(request).serving.operator.sleep(SleepModel(_model(request))))


async def wake(request: web.Request) -> web.Response:
    return await _last(context(request).serving.operator.wake(WakeModel(_model(request))))


async def move(request: web.Request) -> web.Response:
    """To the device that the query names."""
    name, device = _model(request), _device(request)
    if not device:
        raise BadRequest("device: say where to, ?device=NAME", param="device")
    return await _last(context(request).serving.operator.move(MoveModel(name, device)))


async def pin(request: web.Request) -> web.Response:
    return _pinned(request, True)


async def unpin(request: web.Request) -> web.Response:
    return _pinned(request, False)


def _pinned(request: web.Request, pinned: bool) -> web.Response:
    row = context(request).serving.operator.pin(PinModel(_model(request), pinned))
    return json_response({"model": row.name, "pinned": row.pinned})


def _model(request: web.Request) -> str:
    """Raises Forbidden and NotFound."""
    check_operator(request)
    return find_model(request, request.match_info["id"]).name


def _device(request: web.Request) -> str:
    return request.query.get("device", "")


async def _last(steps: AsyncIterator[Step]) -> web.Response:
    """When it is done; it goes on without the client. Raises what it ended with."""
    return json_response([step async for step in steps][-1])
