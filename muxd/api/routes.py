"""What the door serves, in one table: each path with its handler, what it is for, and the body it takes."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from aiohttp import web
from msgspec import Struct

from muxd.api import about, actions, models, operate, page, schemas
from muxd.api.anthropic import endpoint as anthropic
from muxd.api.anthropic.schemas import CountRequest, MessagesRequest
from muxd.api.chat import chat
from muxd.api.completions import completions
from muxd.api.described import plain
from muxd.api.embeddings import embeddings, rerank, score
from muxd.api.ollama import embed
from muxd.api.ollama import endpoints as ollama
from muxd.api.ollama.answer import OllamaAnswer
from muxd.api.ollama.schemas import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaTextRequest,
    OllamaTextsRequest,
    ShowRequest,
)
from muxd.api.openapi import openapi
from muxd.api.responses.endpoint import responses
from muxd.api.responses.schemas import ResponsesRequest
from muxd.api.running import cancel
from muxd.api.sse import SSE
from muxd.api.tokenize import detokenize, tokenize, tokenizer_info
from muxd.watch.files import PAGE_TYPES

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_JSON = ("application/json",)
_EVENTS, _LINES = (*_JSON, SSE), (*_JSON, OllamaAnswer.content_type)


@dataclass(frozen=True)
class Route:
    """Paths under /v1 are served without it, too, and all with a slash at their end."""

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[Struct] | None = None
    answers: tuple[str, ...] = _JSON  # content types

    def paths(self) -> Iterator[str]:
        for path in dict.fromkeys((self.path, self.path.removeprefix("/v1"))):
            yield path
            if not path.endswith(("/", "+}")):
                yield f"{path}/"


ROUTES = [
    Route("GET", "/", about.index, "What is here; to a browser a page that shows it"),
    Route("GET", "/health", about.health, "Whether muxd serves, and each model's state"),
    Route("GET", "/health/{id:.+}", about.ready, "Whether one model is served"),
    Route("GET", "/ping", about.health, "As /health"),
    Route("POST", "/ping", about.health, "As /health"),
    Route("GET", "/version", about.version, "muxd's version"),
    Route("GET", "/metrics", about.metrics, "Series for Prometheus", answers=("text/plain",)),
    Route("GET", "/v1/models", models.list_models, "The models that are served"),
    Route("GET", "/v1/models/{id:.+}", models.get_model, "One model"),
    Route("POST", "/v1/chat/completions", chat, "Answer a conversation", schemas.ChatRequest, _EVENTS),
    Route("POST", "/v1/completions", completions, "Go on from a text", schemas.CompletionRequest, _EVENTS),
    Route("POST", "/v1/embeddings", embeddings, "Texts as vectors", schemas.EmbeddingRequest),
    Route("POST", "/v1/rerank", rerank, "Documents by how near they are to a query", schemas.RerankRequest),
    Route("POST", "/v1/score", score, "How near texts are to each other", schemas.ScoreRequest),
    Route(
        "POST", "/v1/responses", responses, "Answer a conversation, item by item", ResponsesRequest, _EVENTS
    ),
    Route(
        "POST",
        "/v1/messages",
        anthropic.messages,
        "Answer a conversation, as Anthropic",
        MessagesRequest,
        _EVENTS,
    ),
    Route(
        "POST", "/v1/messages/count_tokens", anthropic.count_tokens, "Tokens of a conversation", CountRequest
    ),
    Route("POST", "/api/chat", ollama.chat, "Answer a conversation, as Ollama", OllamaChatRequest, _LINES),
    Route(
        "POST",
        "/api/generate",
        ollama.generate,
        "Answer or complete, as Ollama",
        OllamaGenerateRequest,
        _LINES,
    ),
    Route("POST", "/api/embed", embed.embed_texts, "Texts as vectors, as Ollama", OllamaTextsRequest),
    Route("POST", "/api/embeddings", embed.embed_text, "As /api/embed, of one text", OllamaTextRequest),
    Route("GET", "/api/tags", ollama.tags, "The models that are served, as Ollama"),
    Route("GET", "/api/ps", ollama.ps, "Those that are loaded, as Ollama"),
    Route("POST", "/api/show", ollama.show, "One model, as Ollama", ShowRequest),
    Route("GET", "/api/version", ollama.version, "The version of Ollama's API"),
    Route(
        "DELETE",
        "/v1/requests/{id}",
        cancel,
        "End a generation or an embedding, by its id",
    ),
    Route("GET", "/running", actions.running, "The models that are loaded, as llama-swap"),
    Route("GET", "/unload", actions.unload, "Unload all models, as llama-swap"),
    Route("POST", "/api/models/unload", actions.unload, "Unload all models, as llama-swap"),
    Route("POST", "/api/models/unload/{id:.+}", actions.unload, "Unload one model, as llama-swap"),
    Route("GET", "/api/events", page.events, "What happens, as it happens", answers=(SSE,)),
    Route("GET", "/api/why/{id:.+}", operate.why, "Where a request's time went"),
    Route("POST", "/api/models/load/{id:.+}", operate.load, "Load a model, ?device= says where to"),
    Route("POST", "/api/models/sleep/{id:.+}", operate.sleep, "Have a model sleep"),
    Route("POST", "/api/models/wake/{id:.+}", operate.wake, "Wake a model"),
    Route("POST", "/api/models/move/{id:.+}", operate.move, "Move a model to the device ?device="),
    Route("POST", "/api/models/pin/{id:.+}", operate.pin, "Never have a model sleep by the rules"),
    Route("POST", "/api/models/unpin/{id:.+}", operate.unpin, "Let the rules have a model sleep"),
    Route("GET", "/page/{file}", page.page_file, "What the page at / is made of", answers=tuple(PAGE_TYPES)),
    Route("GET", "/openapi.json", openapi, "This API as an OpenAPI document"),
    Route("POST", "/tokenize", tokenize, "Token ids of a text or conversation", schemas.TokenizeRequest),
    Route("GET", "/tokenizer_info", tokenizer_info, "Special tokens and chat template of ?model="),
    Route("POST", "/detokenize", detokenize, "The text of token ids", schemas.DetokenizeRequest),
]


# By every path that it has.
NAMES = {plain(path): plain(route.path) for route in ROUTES for path in route.paths()}


def all_routes() -> list[web.RouteDef]:
    return [
        web.get(path, route.handler)  # and HEAD
        if route.method == "GET"
        else web.route(route.method, path, route.handler)
        for route in ROUTES
        for path in route.paths()
    ]
