"""/v1/embeddings, /v1/rerank and /v1/score over a scripted engine: shapes, order, refusals, closings."""

import asyncio
import base64
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.http_door import Door, Scripted

from muxd.engine.request import Request
from muxd.engine.stream import TokenStream

pytestmark = pytest.mark.anyio
EMBED, RERANK, SCORE = "/v1/embeddings", "/v1/rerank", "/v1/score"


Vector = NDArray[np.float32]


def vector_of(ids: list[int]) -> Vector:
    """Of 8 numbers, by the tokens alone."""
    return np.random.default_rng(ids).normal(size=8).astype(np.float32)


def unit(vector: Vector) -> Vector:
    return vector / np.float32(np.linalg.norm(vector))


async def embed(request: Request, stream: TokenStream) -> None:
    for _ in range(request.prompt[0] % 3):  # they end in another order
        await asyncio.sleep(0)
    stream.vector = vector_of(request.prompt).tobytes()
    stream.end("stop")


@pytest.fixture(autouse=True)
def pooled(serving: Scripted) -> None:
    serving.by_name["base"].pooling = "mean"
    serving.play = embed


async def test_openais_client(door: Door, serving: Scripted) -> None:
    texts = [f"text number {i}" for i in range(70)]
    answer = await door.openai.embeddings.create(model="base", input=texts)  # it asks for base64
    ids = [serving.tokenizer.encode(text) for text in texts]
    assert [one.index for one in answer.data] == list(range(70))
    for one, tokens in zip(answer.data, ids, strict=True):
        np.testing.assert_allclose(one.embedding, unit(vector_of(tokens)), rtol=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, ids))
    assert all(r.max_tokens == 0 and r.pooling == "mean" for r in serving.requests)
    assert len(serving.requests) == 70


async def test_one_request_waits_for_itself_where_the_queue_is_short(door: Door, serving: Scripted) -> None:
    serving.by_name["base"].max_queue = 2
    open_ones, most = 0, 0

    async def counted(request: Request, stream: TokenStream) -> None:
        nonlocal open_ones, most
        open_ones += 1
        most = max(most, open_ones)
        await asyncio.sleep(0)
        open_ones -= 1
        await embed(request, stream)

    serving.play = counted
    status, answer, _ = await door.post(EMBED, {"model": "base", "input": [f"text {i}" for i in range(9)]})
    assert (status, len(answer["data"])) == (200, 9)
    assert most == 2


async def test_a_request_that_is_ended_by_its_id(door: Door, serving: Scripted) -> None:
    serving.play = serving.hold()
    body = {"model": "base", "input": [f"text {i}" for i in range(70)]}
    asked = asyncio.ensure_future(door.post(EMBED, body, **{"x-request-id": "mine"}))
    await serving.submitted.wait()
    async with door.http.delete("/v1/requests/mine") as answer:
        assert answer.status == 200
    status, told, _ = await asked
    assert (status, told["error"]["code"]) == (499, "request_cancelled")
    assert len(serving.closed) == len(serving.requests) < 70


@pytest.mark.parametrize("given", ["one two", ["one two"], [5, 6, 7], [[5, 6, 7], [8]]])
async def test_forms_of_input_and_of_the_answer(door: Door, serving: Scripted, given: Any) -> None:
    body = {"model": "base", "input": given, "dimensions": 3}
    status, answer, _ = await door.post(EMBED, body)
    assert (status, answer["object"], answer["model"]) == (200, "list", "base")
    found = [one["embedding"] for one in answer["data"]]
    for vector, request in zip(found, serving.requests, strict=True):
        np.testing.assert_allclose(vector, unit(vector_of(request.prompt)[:3]), rtol=1e-5)
    _, packed, _ = await door.post(EMBED, body | {"encoding_format": "base64"})
    for one, vector in zip(packed["data"], found, strict=True):
        np.testing.assert_allclose(
            np.frombuffer(base64.b64decode(one["embedding"]), "<f4"), vector, rtol=1e-6
        )


async def test_documents_by_how_near_they_are(door: Door, serving: Scripted) -> None:
    documents = ["a cat", {"text": "a dog"}, "the sea", "a cat"]
    body = {"model": "base", "query": "a cat", "documents": documents}
    status, answer, _ = await door.post(RERANK, body)
    assert status == 200
    order = [one["index"] for one in answer["results"]]
    scores = [one["relevance_score"] for one in answer["results"]]
    assert order[:2] == [0, 3]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(1)
    assert [one["document"]["text"] for one in answer["results"]][:2] == ["a cat", "a cat"]
    _, few, _ = await door.post(RERANK, body | {"top_n": 2, "return_documents": False})
    assert (
        few["results"] == [{"index": i, "relevance_score": s} for i, s in zip(order, scores, strict=True)][:2]
    )


async def test_pairs_and_one_against_each(door: Door) -> None:
    def near(one: str, other: str) -> Any:
        a, b = (unit(vector_of(tokens(text))) for text in (one, other))
        return pytest.approx(float(a @ b), abs=1e-5)

    tokens = (await _tokens(door)).__getitem__
    for first, then in (("a", "b"), ("a", ["b", "c"]), (["a", "b"], ["c", "a"])):
        status, answer, _ = await door.post(SCORE, {"model": "base", "text_1": first, "text_2": then})
        assert status == 200
        second = [then] if isinstance(then, str) else then
        left = [first] * len(second) if isinstance(first, str) else first
        wanted = [near(one, other) for one, other in zip(left, second, strict=True)]
        assert [one["score"] for one in answer["data"]] == wanted


async def _tokens(door: Door) -> dict[str, list[int]]:
    found = {}
    for text in "abc":
        _, answer, _ = await door.post("/tokenize", {"model": "base", "prompt": text})
        found[text] = answer["tokens"]
    return found


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (EMBED, {"input": ""}, "input"),
        (EMBED, {"input": []}, "input"),
        (EMBED, {"input": ["a", 1]}, "input"),
        (EMBED, {"input": [400]}, "input"),
        (EMBED, {"input": ["a"] * 1025}, "input"),
        (EMBED, {}, "input"),
        (EMBED, {"input": "a", "encoding_format": "int8"}, "encoding_format"),
        (EMBED, {"input": "a", "dimensions": 0}, "dimensions"),
        (EMBED, {"input": "a", "dimensions": 9}, "dimensions"),
        (EMBED, {"input": "a", "truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
        (EMBED, {"input": "a", "model": "org/chat-model"}, "model"),
        (EMBED, {"input": "x " * 5000}, "input"),
        (RERANK, {"query": "", "documents": ["a"]}, "query"),
        (RERANK, {"query": "a", "documents": []}, "documents"),
        (RERANK, {"query": "a", "documents": [""]}, "documents"),
        (RERANK, {"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
        (SCORE, {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        (SCORE, {"text_1": "a", "text_2": [""]}, "text_2"),
    ],
)
async def test_refusals(door: Door, serving: Scripted, path: str, body: dict[str, Any], param: str) -> None:
    status, answer, _ = await door.post(path, {"model": "base"} | body)
    assert (status, answer["error"]["param"]) == (400, param)
    if param != "dimensions":
        assert serving.requests == []


async def test_a_model_that_only_embeds(door: Door, serving: Scripted) -> None:
    serving.by_name["base"].generates = False
    status, answer, _ = await door.post("/v1/completions", {"model": "base", "prompt": "a"})
    assert (status, answer["error"]["param"]) == (400, "model")
    assert "/v1/embeddings" in answer["error"]["message"]


async def test_numbers_that_are_none(door: Door, serving: Scripted) -> None:
    def broken(request: Request, stream: TokenStream) -> None:
        stream.vector = np.array([1, np.nan], "<f4").tobytes()
        stream.end("stop")

    serving.play = broken
    status, answer, _ = await door.post(EMBED, {"model": "base", "input": ["a", "b"]})
    assert (status, answer["error"]["code"]) == (500, "no_finite_logits")


async def test_a_client_that_leaves_closes_all_its_texts(door: Door, serving: Scripted) -> None:
    all_there = asyncio.Event()

    def hold(request: Request, stream: TokenStream) -> None:
        if len(serving.streams) == 31:
            all_there.set()

    serving.play = hold
    asking = asyncio.create_task(door.post(EMBED, {"model": "base", "input": [f"{i}" for i in range(50)]}))
    await all_there.wait()
    asking.cancel()
    while len(serving.closed) < 32:
        serving.closing.clear()
        await serving.closing.wait()
    assert len(serving.streams) == 32


async def test_ollamas_two_ways(door: Door, serving: Scripted) -> None:
    wanted = [unit(vector_of(serving.tokenizer.encode(text))) for text in ("one", "two")]
    status, answer, _ = await door.post("/api/embed", {"model": "base:latest", "input": ["one", "two"]})
    assert status == 200
    np.testing.assert_allclose(answer["embeddings"], wanted, rtol=1e-5)
    counts = [len(serving.tokenizer.encode(text)) for text in ("one", "two")]
    assert (answer["model"], answer["prompt_eval_count"]) == ("base", sum(counts))
    assert answer["total_duration"] > 0
    _, answer, _ = await door.post("/api/embed", {"model": "base", "input": "one", "dimensions": 4})
    np.testing.assert_allclose(answer["embeddings"], [unit(wanted[0][:4])], rtol=1e-5)
    _, answer, _ = await door.post("/api/embeddings", {"model": "base", "prompt": "two"})
    np.testing.assert_allclose(answer["embedding"], wanted[1], rtol=1e-5)
    status, answer, _ = await door.post("/api/embed", {"model": "base", "input": "one", "dimensions": 9})
    assert (status, answer["error"][:10]) == (400, "dimensions")


async def test_ollama_cuts_what_is_too_long_unless_it_is_told_not_to(door: Door, serving: Scripted) -> None:
    body = {"model": "base", "input": ["hello world " * 400]}
    status, answer, _ = await door.post("/api/embed", body | {"truncate": False})
    assert (status, "error" in answer) == (400, True)
    assert (await door.post("/api/embed", body))[0] == 200
    assert len(serving.requests[-1].prompt) == serving.by_name["base"].max_context - 1
