"""What changes something for everybody, where and as llama-swap has it: /running and /unload."""

from aiohttp import web

from muxd.admin.schemas import UnloadModel
from muxd.api.context import context, find_model, on_device, shown_models
from muxd.api.guard import check_actions
from muxd.api.replies import json_response


async def running(request: web.Request) -> web.Response:
    """The models that are on a device, or on their way."""
    shown = [
        {"model": model.name, "state": model.state, "cmd": "", "proxy": "", "ttl": 0}
        for model in shown_models(request)
        if on_device(model)
    ]
    return json_response({"running": shown})


async def unload(request: web.Request) -> web.Response:
    """One model, or without a name all: new requests are refused, those that are here are answered. Adapters
    go with their bases."""
    check_actions(request)
    name = request.match_info.get("id", "")
    operator = context(request).serving.operator
    served = [
        model
        for model in shown_models(request)
        if not model.base and model.state in ("ready", "restarting", "asleep")
    ]
    models = [find_model(request, name)] if name else served
    for model in models:
        async for _ in operator.unload(UnloadModel(model.name)):
            pass
    return json_response({"msg": "ok", "unloaded": [model.name for model in models]})
