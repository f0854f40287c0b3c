"""POST /v1/embeddings, /v1/rerank and /v1/score: texts as vectors, and how near they are to each other.

A text is a request of the engine without an answer: a prefill that gives one vector. Those of one HTTP
request go to the engine a few at a time, so that it holds no more of the queue than that.
"""

import asyncio
import base64
import math
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from muxd.api.context import submit, trace
from muxd.api.reading import texts_of
from muxd.api.replies import encoded_response, json_response
from muxd.api.running import by_id, unfinished
from muxd.api.schemas import EmbeddingAsked, RerankAsked, ScoreAsked
from muxd.api.serving import ServedModel
from muxd.api.turns import in_turns, together
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import BadRequest, MuxdError
from muxd.messages import Sampling

_AT_ONCE = 32  # texts of one HTTP request that the engine has
_GREEDY = Sampling(temperature=0.0)

Vector = NDArray[np.float32]  # of length 1


async def embeddings(request: web.Request) -> web.Response:
    """OpenAI's. Raises MuxdError for everything the client has to hear about."""
    model, asked, prompts = await texts_of(request, "embed", EmbeddingAsked)
    vectors = await embed(request, model, [ids for ids, _ in prompts])
    parts: list[bytes] = []
    async for vector in of_size(model, vectors, asked.dimensions):
        plain = asked.encoding_format != "base64"
        value = vector.tolist() if plain else base64.b64encode(vector.astype("<f4").tobytes()).decode()
        parts.append(msgspec.json.encode({"object": "embedding", "index": len(parts), "embedding": value}))
    usage = _usage(prompts)
    rest = msgspec.json.encode({"object": "list", "model": model.name, "usage": usage})
    body = b"".join((rest[:-1], b',"data":[', b",".join(parts), b"]}"))
    return encoded_response(body)


async def rerank(request: web.Request) -> web.Response:
    """Cohere's and Jina's: documents by how near they are to the query, nearest first."""
    model, asked, prompts = await texts_of(request, "rerank", RerankAsked)
    query, *documents = await embed(request, model, [ids for ids, _ in prompts])
    scores = [_near(query, document) for document in documents]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n]
    shown = [text for _, text in prompts[1:]]
    results = [
        {"index": index, "relevance_score": scores[index]}
        | ({"document": {"text": shown[index]}} if asked.return_documents else {})
        for index in order
    ]
    return _answer("rerank", model, {"results": results, "usage": _usage(prompts)})


async def score(request: web.Request) -> web.Response:
    """vLLM's: one text against each of several, or texts pair by pair."""
    model, asked, prompts = await texts_of(request, "score", ScoreAsked)
    vectors = await embed(request, model, [ids for ids, _ in prompts])
    first, then = vectors[: asked.first], vectors[asked.first :]
    pairs = zip(first * len(then) if len(first) == 1 else first, then, strict=True)
    data = [
        {"index": index, "object": "score", "score": _near(one, other)}
        for index, (one, other) in enumerate(pairs)
    ]
    return _answer("score", model, {"object": "list", "data": data, "usage": _usage(prompts)})


# ---- shared ---------------------------------------------------------------------------------------


async def of_size(model: ServedModel, vectors: list[Vector], dimensions: int | None) -> AsyncIterator[Vector]:
    """Their first ``dimensions``, all by default. Raises BadRequest where there are not as many."""
    size = len(vectors[0])
    if dimensions is not None and dimensions > size:
        raise BadRequest(
            f"dimensions: {dimensions} are more than the {size} of {model.name!r}", param="dimensions"
        )
    async for vector in in_turns(vectors):
        yield vector if dimensions is None else _unit(vector[:dimensions])


async def embed(request: web.Request, model: ServedModel, prompts: list[list[int]]) -> list[Vector]:
    """Of each, in order. Raises BadRequest where the model gives none."""
    if not model.pooling:
        raise BadRequest(
            f"The model {model.name!r} does not embed texts: there is no 1_Pooling/config.json in its folder "
            'and no pooling = "last" (or "mean") in its [[model]] table of muxd.toml',
            param="model",
        )
    record = trace(request)
    record.prompt_tokens = sum(map(len, prompts))
    found: list[Vector] = [np.empty(0, np.float32)] * len(prompts)
    jobs = iter(enumerate(prompts))
    name = f"embd-{secrets.token_hex(12)}"

    streams: set[TokenStream] = set()

    async def work() -> None:
        async for index, ids in _shared(jobs):
            if record.revoked:
                raise unfinished(record)
            one = Request(f"{name}-{index}", model.name, ids, 0, _GREEDY, frozenset(), pooling=model.pooling)
            found[index] = await _vector(request, one, streams)

    def end() -> None:
        for stream in list(streams):
            stream.close()

    with by_id(request, {record.id}, end):
        await together([work() for _ in range(min(_AT_ONCE, model.max_queue, len(prompts)))])
    record.finish = "stop"
    return found


async def _shared(jobs: Iterator[tuple[int, list[int]]]) -> AsyncIterator[tuple[int, list[int]]]:
    """Several readers take turns; the loop has a look at others between two."""
    for job in jobs:
        yield job
        await asyncio.sleep(0)


async def _vector(request: web.Request, one: Request, streams: set[TokenStream]) -> Vector:
    """``streams`` has its own while it waits."""
    stream = submit(request, one)
    streams.add(stream)
    try:
        async for delta in stream:
            if delta.finish:
                vector = _unit(np.frombuffer(stream.vector, dtype="<f4"))
                if len(vector) and math.isfinite(float(vector[0])):
                    return vector
                raise MuxdError(f"the model gave no finite numbers for {one.id}", code="no_finite_logits")
    finally:
        streams.discard(stream)
        stream.close()
        trace(request).waited(stream.queued())
    raise unfinished(trace(request))


def _unit(vector: NDArray[Any]) -> Vector:
    """Of length 1, as OpenAI's are; NaN in all places where a number is none."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector / length if length else vector).astype(np.float32)


def _near(one: Vector, other: Vector) -> float:
    """The cosine of what lies between them."""
    return float(np.dot(one, other))


def _usage(prompts: list[tuple[list[int], str]]) -> dict[str, int]:
    count = sum(len(ids) for ids, _ in prompts)
    return {"prompt_tokens": count, "total_tokens": count}


def _answer(kind: str, model: ServedModel, rest: dict[str, Any]) -> web.Response:
    return json_response({"id": f"{kind}-{secrets.token_hex(12)}", "model": model.name, **rest})
