"""Ollama's POST /api/embed, and /api/embeddings, which older clients call."""

from typing import Any

from aiohttp import web

from muxd.api.context import context, trace
from muxd.api.embeddings import embed, of_size
from muxd.api.reading import texts_of
from muxd.api.replies import json_response
from muxd.api.schemas import EmbeddingAsked
from muxd.text.work import Kind


async def embed_texts(request: web.Request) -> web.Response:
    """Raises MuxdError for everything the client has to hear about."""
    name, vectors = await _embedded(request, "ollama_embed")
    record, now = trace(request), context(request).clock.now()
    return json_response(
        {
            "model": name,
            "embeddings": vectors,
            "total_duration": round(1e9 * (now - record.started)),
            "load_duration": 0,
            "prompt_eval_count": record.prompt_tokens,
        }
    )


async def embed_text(request: web.Request) -> web.Response:
    """Raises MuxdError for everything the client has to hear about."""
    _, (vector,) = await _embedded(request, "ollama_embeddings")
    return json_response({"embedding": vector})


async def _embedded(request: web.Request, kind: Kind) -> tuple[str, list[Any]]:
    model, asked, prompts = await texts_of(request, kind, EmbeddingAsked)
    vectors = await embed(request, model, [ids for ids, _ in prompts])
    return model.name, [vector.tolist() async for vector in of_size(model, vectors, asked.dimensions)]
