"""Ollama's paths: /api/chat, /api/generate, and what is known of the models."""

import hashlib
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from aiohttp import web

from muxd.api.body import coding, read_body
from muxd.api.context import find_model, on_device, pieces_of, shown_models, submit
from muxd.api.decoding import decode
from muxd.api.generate import run
from muxd.api.ignored import ignored
from muxd.api.job import chat_job
from muxd.api.ollama.answer import OllamaAnswer
from muxd.api.ollama.schemas import ShowRequest
from muxd.api.reading import note_ignored, read, unpack_asked
from muxd.api.replies import encoded_response, json_response
from muxd.api.serving import ServedModel
from muxd.api.times import zulu
from muxd.engine.request import Request
from muxd.errors import BadRequest, TooLarge
from muxd.messages import Sampling
from muxd.text.work import Answer, Kind

LEVEL = "0.12.6"  # of Ollama's API that is followed here: clients look whether it is new enough
_SHORT = 64 << 10  # bytes of a body that is read here, between the tokens of streams
_show = msgspec.json.Decoder(ShowRequest)


async def chat(request: web.Request) -> web.StreamResponse:
    """Raises MuxdError for everything the client has to hear about."""
    return await _generated(request, "ollama_chat", chat=True)


async def generate(request: web.Request) -> web.StreamResponse:
    """Raises MuxdError for everything the client has to hear about."""
    return await _generated(request, "ollama_generate", chat=False)


async def _generated(request: web.Request, kind: Kind, *, chat: bool) -> web.StreamResponse:
    model, result = await read(request, kind)
    if isinstance(result, Answer):  # nothing was to be generated: it asked for the model to be there
        if model.state == "asleep":
            await _wake(request, model)
        return encoded_response(result.body)
    body, prompts = await unpack_asked(request, model, result)
    _, job = chat_job("ollama-", model, body, prompts)
    return await run(request, job, OllamaAnswer(model.name, pieces_of(model), chat=chat))


async def _wake(request: web.Request, model: ServedModel) -> None:
    """By what wakes every model: a request that waits for it, of one token. Raises MuxdError as others do."""
    name, greedy = f"ollama-{secrets.token_hex(12)}", Sampling(temperature=0.0)
    pooling = "" if model.generates else model.pooling
    one = Request(name, model.name, [0], int(model.generates), greedy, model.eos, pooling=pooling)
    stream = submit(request, one)
    try:
        async for delta in stream:
            if delta.finish:
                return
    finally:
        stream.close()


async def tags(request: web.Request) -> web.Response:
    """The models there are."""
    return json_response({"models": [_listed(model) for model in shown_models(request)]})


async def ps(request: web.Request) -> web.Response:
    """Those that are loaded. None leaves by the clock: one sleeps when another needs its place."""
    far = zulu(datetime.now(UTC) + timedelta(days=36500))
    loaded = [model for model in shown_models(request) if on_device(model)]
    return json_response(
        {"models": [_listed(one) | {"expires_at": far, "size_vram": one.weight_bytes} for one in loaded]}
    )


async def show(request: web.Request) -> web.Response:
    if coding(request):
        raise web.HTTPUnsupportedMediaType(text="send this body plain: it names a model")
    data = await read_body(request)
    if len(data) > _SHORT:
        raise TooLarge(f"the request body is larger than {_SHORT} bytes: it names a model")
    asked = decode(data, _show)
    note_ignored(request, ignored(data, ShowRequest), ShowRequest.__struct_fields__)
    name = asked.model or asked.name
    if not name:
        raise BadRequest("model is required", param="model")
    model = find_model(request, name)
    family = _family(model)
    return json_response(
        {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": _details(model),
            "model_info": {
                "general.architecture": family,
                "general.parameter_count": model.parameters,
                f"{family}.context_length": model.max_context,
            },
            "capabilities": _able(model),
            "modified_at": _made(model),
        }
    )


async def version(_: web.Request) -> web.Response:
    return json_response({"version": LEVEL})


def _listed(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": _made(model),
        "size": model.weight_bytes,
        "digest": hashlib.sha256(model.name.encode()).hexdigest(),
        "details": _details(model),
    }


def _able(model: ServedModel) -> list[str]:
    """What clients ask before they offer it; every model with a chat template is told of tools."""
    able = {
        "completion": model.generates,
        "embedding": bool(model.pooling),
        "tools": model.generates and model.chat,
        "thinking": model.generates and model.thinks,
    }
    return [name for name, is_so in able.items() if is_so]


def _details(model: ServedModel) -> dict[str, Any]:
    billions = model.parameters / 1e9
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": _family(model),
        "families": [_family(model)],
        "parameter_size": f"{billions:.1f}B" if billions >= 1 else f"{billions * 1000:.0f}M",
        "quantization_level": model.dtype,
    }


def _family(model: ServedModel) -> str:
    """``LlamaForCausalLM`` is a llama."""
    return re.sub(r"(For[A-Z]\w*|Model)$", "", model.family).lower() or "unknown"


def _made(model: ServedModel) -> str:
    return zulu(datetime.fromtimestamp(model.created, UTC))
