"""What every handler of the application shares, and how it finds it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web
from msgspec import structs

from muxd.api.arriving import Arriving
from muxd.api.described import Described
from muxd.api.guests import HttpLimits
from muxd.api.keys import Keys
from muxd.api.metrics import HttpMetrics
from muxd.api.ollama.schemas import OLLAMA_TAG
from muxd.api.serving import ServedModel, Serving, Texts
from muxd.api.trace import Trace
from muxd.clock import Clock
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import ModelFolderError, ModelNotReady, ModelUnloaded, NotFound, ShuttingDown
from muxd.messages import Sampling
from muxd.text.pieces import Pieces

if TYPE_CHECKING:
    from muxd.api.running import Running


@dataclass(frozen=True)
class Context:
    """The application's wiring; one per ``make_app``."""

    serving: Serving
    metrics: HttpMetrics
    clock: Clock
    max_body: int  # bytes
    texts: Texts
    limits: HttpLimits
    arriving: Arriving
    routes: tuple[Described, ...]
    running: "Running"
    keys: Keys | None  # None: whoever reaches the door may come in
    cors_origins: frozenset[str]
    allowed_hosts: frozenset[str]  # names beside those of every loopback address
    strict: bool  # refuse fields that are not known
    seen: set[str] = field(default_factory=set)  # such fields, that the log has named


_SHOWN = 100  # characters of a name that nobody knows

CONTEXT = web.AppKey("context", Context)
TRACE = web.RequestKey("trace", Trace)


def context(request: web.Request) -> Context:
    return request.app[CONTEXT]


def trace(request: web.Request) -> Trace:
    """The request's record, made by the door's middleware."""
    return request[TRACE]


def submit(request: web.Request, one: Request) -> TokenStream:
    """To the engine, in the name of the HTTP request and of the key that it came with. Raises MuxdError where
    the engine refuses it."""
    return context(request).serving.submit(_named(request, one))


def check_room(request: web.Request, model: ServedModel) -> None:
    """Before the text is read: who floods a model should not pay with others' processor. Raises QueueFull
    where the model's queue has no place for this key."""
    unread = Request(trace(request).id, model.name, [], 0, Sampling(), frozenset())
    context(request).serving.check_room(_named(request, unread))


def payer(request: web.Request) -> tuple[str, float]:
    """Name and weight of the key that it came with; those without one are one class."""
    key = trace(request).key
    return ("", 1.0) if key is None else (key.name, key.weight)


def _named(request: web.Request, one: Request) -> Request:
    key, weight = payer(request)
    return structs.replace(one, http_id=trace(request).id, key=key, weight=weight)


def find_model(request: web.Request, name: str) -> ServedModel:
    """By its name or an alias, with Ollama's tag or without. Raises NotFound (404, ``model_not_found``)
    naming what is served."""
    served_models = names_of(shown_models(request))
    model = served_models.get(name) or served_models.get(name.removesuffix(OLLAMA_TAG))
    if model is None:
        served = ", ".join(served_models) or "none"
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
        raise NotFound(f"The model {shown!r} does not exist. Served models: {served}", param="model")
    return model


def names_of(models: Iterable[ServedModel]) -> dict[str, ServedModel]:
    """By every name that clients may use."""
    return {name: model for model in models for name in (model.name, *model.aliases)}


def shown_models(request: web.Request) -> list[ServedModel]:
    """In the order to show them; with a key those that it may use."""
    models, key = context(request).serving.models().values(), trace(request).key
    return [model for model in models if key is None or key.may_use(model.name)]


def on_device(model: ServedModel) -> bool:
    """It is there, or on its way."""
    return model.state not in ("unloaded", "failed", "asleep")


def pieces_of(model: ServedModel) -> Pieces:
    """What its answers are put together from, once the model may be used.

    A restarting model passes: the engine decides whether to queue. Raises ModelUnloaded when it is unloaded
    or about to be, ModelFolderError when it has failed, ShuttingDown when it drains, ModelNotReady while it
    loads, or has failed and will be tried again.
    """
    if model.state in ("unloaded", "unloading"):
        comes = model.base or model.name  # an adapter with its base
        raise ModelUnloaded(
            f"The model {model.name!r} is {model.state}; `muxctl load {comes}` brings it back", param="model"
        )
    if model.state == "failed" and model.retry_after is not None:
        raise ModelNotReady(
            f"The model {model.name!r} has failed ({model.detail}) and is tried again within "
            f"{model.retry_after:.0f} s",
            param="model",
            retry_after=model.retry_after,
        )
    if model.state == "failed":
        raise ModelFolderError(f"The model {model.name!r} cannot be served: {model.detail}", param="model")
    if model.state == "draining":
        raise ShuttingDown("muxd is shutting down and takes no new requests")
    if model.pieces is None:
        raise ModelNotReady(f"The model {model.name!r} is {model.state}; try again shortly", param="model")
    return model.pieces
