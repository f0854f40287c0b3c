"""From a request to what it asks for, its text as ids.

No text is worked on here: tokenizers and templates hold the interpreter for as long as they like, and so do a
few megabytes of JSON. Bodies go to a text process as they came; short ones are skimmed for the model's name.
"""

import asyncio
import logging
import re
from collections.abc import Iterable
from typing import TypeVar

import msgspec
from aiohttp import web

from muxd.api.body import coding, read_body
from muxd.api.context import (
    check_room,
    context,
    find_model,
    names_of,
    payer,
    pieces_of,
    shown_models,
    trace,
)
from muxd.api.decoding import decode
from muxd.api.ignored import refuse_ignored
from muxd.api.prepare import fields_of
from muxd.api.running import by_id, unfinished
from muxd.api.schemas import Asked
from muxd.api.serving import ServedModel
from muxd.api.turns import in_turns
from muxd.errors import BadRequest, ModelNotReady, MuxdError
from muxd.text.work import Answer, Elsewhere, Kind, Prepare, Prepared, Result, unpacked

T = TypeVar("T")

log = logging.getLogger("muxd.api")

_AT_ONCE = ("tokenize", "detokenize", "count")  # kinds that a text process answers, and no worker
_PEEK = 64 << 10  # bytes of a body that is skimmed here for the model's name: at worst 1 ms
_SEEN = 256  # names of fields
_HINT = re.compile(rb'"model"\s*:\s*"([^"\\]{1,256})"')


class _Named(msgspec.Struct):
    model: str | None = None


_named = msgspec.json.Decoder(_Named)


async def read(request: web.Request, kind: Kind) -> tuple[ServedModel, Result]:
    """Raises MuxdError for everything the client has to hear about."""
    model, result = await _read(request, kind)
    if isinstance(result, Prepared | Answer):
        note_ignored(request, result.ignored, fields_of(kind))
    return model, result


async def _read(request: web.Request, kind: Kind) -> tuple[ServedModel, Result]:
    packing = coding(request)
    data = await read_body(request)
    if packing or len(data) > _PEEK:
        return await _read_long(request, kind, data, packing)
    name = decode(data, _named).model
    if name is None and kind not in ("tokenize", "detokenize"):
        raise BadRequest("model is required", param="model")
    model = find_model(request, name or _only(request))
    trace(request).model = model.name
    pieces_of(model)
    if kind not in _AT_ONCE:
        check_room(request, model)
    work = Prepare(kind, data, "", context(request).max_body, {name or model.name: model.view}, model.name)
    result = await _elsewhere(request, work, model.name, len(data))
    return find_model(request, model.name), result  # it may be on another device by now


async def about(request: web.Request, kind: Kind) -> Answer:
    """What a text process knows of a model, which the query names where there are several."""
    model = find_model(request, request.query.get("model") or _only(request))
    trace(request).model = model.name
    pieces_of(model)
    data = msgspec.json.encode({"model": model.name})
    work = Prepare(kind, data, "", context(request).max_body, {model.name: model.view})
    result = await _elsewhere(request, work, model.name, len(data))
    assert isinstance(result, Answer)
    return result


async def _elsewhere(request: web.Request, work: Prepare, model: str, size: int) -> Result:
    """In a text process, until it is ended by its id."""
    record = trace(request)
    key, weight = payer(request)
    task = asyncio.ensure_future(context(request).texts.run(work, model, size, key=key, weight=weight))

    def end() -> None:
        task.cancel()

    try:
        with by_id(request, {record.id}, end):
            return await task
    except asyncio.CancelledError:
        if record.revoked:
            raise unfinished(record) from None
        raise


Texts = list[tuple[list[int], str]]  # ids, and the text to echo


async def asked(request: web.Request, kind: Kind) -> tuple[ServedModel, Asked, Texts]:
    """As ``texts_of``, of a model that generates."""
    model, result = await read(request, kind)
    return model, *await unpack_asked(request, model, result)


async def unpack_asked(request: web.Request, model: ServedModel, result: Result) -> tuple[Asked, Texts]:
    body, prompts = await _unpack(result, Asked)
    trace(request).params = body.params
    if not model.generates:
        raise BadRequest(
            f"The model {model.name!r} only embeds texts: use /v1/embeddings, /v1/rerank or /v1/score",
            param="model",
        )
    return body, prompts


async def texts_of(request: web.Request, kind: Kind, body: type[T]) -> tuple[ServedModel, T, Texts]:
    """The model, what is asked of it, and the ids of each prompt with the text to show for it."""
    model, result = await read(request, kind)
    return model, *await _unpack(result, body)


async def _unpack(result: Result, body: type[T]) -> tuple[T, Texts]:
    assert isinstance(result, Prepared)
    packed = in_turns(zip(result.prompts, result.echoes, strict=True))
    prompts = [(unpacked(ids), echo) async for ids, echo in packed]
    return msgspec.msgpack.decode(result.asked, type=body), prompts


async def _read_long(
    request: web.Request, kind: Kind, data: bytes, packing: str
) -> tuple[ServedModel, Result]:
    """Which model it is for is known afterwards; a guess takes it to the process that knows it."""
    most = context(request).max_body
    served = names_of(shown_models(request))
    views = {name: model.view for name, model in served.items() if model.pieces is not None}
    only = next(iter(served)) if len({model.name for model in served.values()}) == 1 else ""
    guess = _guess(data)
    work = Prepare(kind, data, packing, most, views, only)
    result = await _elsewhere(request, work, guess if guess in served else "", len(data))
    if isinstance(result, Elsewhere):
        pieces_of(find_model(request, result.model or _only(request)))
        raise ModelNotReady(f"The model {result.model!r} was loaded this moment; try again", param="model")
    model = find_model(request, _name(result))
    trace(request).model = model.name
    pieces_of(model)
    return model, result


def note_ignored(request: web.Request, names: list[str], known: Iterable[str]) -> None:
    """To the client, and once in the log. Raises BadRequest where the operator is strict."""
    here = context(request)
    if here.strict:
        refuse_ignored(names, known)
    trace(request).ignored = names
    new = [name for name in names if name not in here.seen]
    if new and len(here.seen) < _SEEN:
        here.seen.update(new)
        log.info("a client of %s sends what is ignored: %s", request.path, ", ".join(new))


def _guess(data: bytes) -> str:
    """The first thing that looks like the name of the model."""
    at = data.find(b'"model"')
    found = _HINT.match(data, at) if at >= 0 else None
    return found[1].decode(errors="replace") if found else ""


def _name(result: Result) -> str:
    match result:
        case Prepared():
            return msgspec.msgpack.decode(result.asked, type=_Named).model or ""
        case Answer():
            return result.model
    raise MuxdError("a text process answered another question", code="internal_error")


def _only(request: web.Request) -> str:
    """The model there is. Raises BadRequest where there are several."""
    names = [model.name for model in shown_models(request)]
    if len(names) != 1:
        raise BadRequest(f"model is required: served models are {', '.join(names) or 'none'}", param="model")
    return names[0]
