"""Raw bodies, frames and headers, key by key."""

import asyncio
import json
import re
from dataclasses import replace
from typing import Any, NoReturn

import pytest
import tokenizers
from support.http_door import TEMPLATE, Door, Scripted
from tokenizers import decoders, models

from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import WorkerLost
from muxd.text.tokenizer import Tokenizer

pytestmark = pytest.mark.anyio


async def frames(door: Door, path: str, body: dict[str, Any]) -> tuple[Any, list[Any]]:
    """(headers, the ``data:`` payloads in order); checks the framing itself."""
    async with door.http.post(path, json=body) as answer:
        assert answer.status == 200
        raw = (await answer.read()).decode()
    assert raw.endswith("data: [DONE]\n\n")
    events = raw.split("\n\n")[:-1]
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    payloads = [event.removeprefix("data: ") for event in events]
    return answer.headers, [json.loads(p) if p != "[DONE]" else p for p in payloads]


async def test_whole_chat(door: Door, serving: Scripted, chat_body: dict[str, Any]) -> None:
    status, answer, _ = await door.post("/v1/chat/completions", chat_body)
    assert status == 200
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{24}", answer.pop("id"))
    assert isinstance(answer.pop("created"), int)
    prompt, completion = len(serving.requests[0].prompt), len(serving.ids("hello world"))
    message = {"role": "assistant", "content": "hello world", "refusal": None}
    assert answer == {
        "object": "chat.completion",
        "model": "org/chat-model",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_whole_completion(door: Door, serving: Scripted) -> None:
    status, answer, _ = await door.post("/v1/completions", {"model": "base", "prompt": "x"})
    assert status == 200
    assert answer.pop("id").startswith("cmpl-")
    assert set(answer) == {"object", "created", "model", "choices", "usage"}
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {"index": 0, "text": "hello world", "logprobs": None, "finish_reason": "stop"}
    ]


@pytest.mark.parametrize(("prompt", "text"), [([1], " Paris"), ([0], "Paris")])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_keeps_the_space_before_its_first_word(
    door: Door, serving: Scripted, prompt: list[int], text: str, stream: bool
) -> None:
    """Decoders of the SentencePiece kind take it off, but only at the start of a whole text."""
    inner = tokenizers.Tokenizer(models.BPE({"<s>": 0, "▁is": 1, "▁Paris": 2}, [], byte_fallback=True))
    inner.add_special_tokens(["<s>"])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    tokenizer = Tokenizer(inner, {}, frozenset())
    serving.by_name["base"] = replace(serving.by_name["base"], tokenizer=tokenizer, vocab_size=3)

    def play(_: Request, stream: TokenStream) -> None:
        stream.put(2)
        stream.end("length")

    serving.play = play
    body = {"model": "base", "prompt": prompt, "stream": stream}
    if stream:
        chunks = (await frames(door, "/v1/completions", body))[1][:-1]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text
    else:
        assert (await door.post("/v1/completions", body))[1]["choices"][0]["text"] == text


@pytest.mark.parametrize("usage", [False, True])
async def test_streamed_chat(door: Door, serving: Scripted, chat_body: dict[str, Any], usage: bool) -> None:
    body = chat_body | {"stream": True} | ({"stream_options": {"include_usage": True}} if usage else {})
    headers, chunks = await frames(door, "/v1/chat/completions", body)
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["Cache-Control"] == "no-cache"
    assert headers["X-Accel-Buffering"] == "no"
    assert chunks.pop() == "[DONE]"
    if usage:
        last = chunks.pop()
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == len(serving.ids("hello world"))
        assert [chunk.pop("usage") for chunk in chunks] == [None] * len(chunks)
    for chunk in chunks:
        assert set(chunk) == {"id", "object", "created", "model", "choices"}
        assert (chunk["object"], chunk["model"]) == ("chat.completion.chunk", "org/chat-model")
        assert set(chunk["choices"][0]) == {"index", "delta", "logprobs", "finish_reason"}
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert choices[-1]["delta"] == {}
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert "".join(c["delta"]["content"] for c in choices[1:-1]) == "hello world"


async def test_streamed_completion(door: Door, serving: Scripted) -> None:
    body = {"model": "base", "prompt": "the", "stream": True, "echo": True}
    _, chunks = await frames(door, "/v1/completions", body)
    chunks.pop()
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    choices = [chunk["choices"][0] for chunk in chunks]
    assert all(set(c) == {"index", "text", "logprobs", "finish_reason"} for c in choices)
    assert "".join(c["text"] for c in choices) == "thehello world"
    assert choices[-1] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}


async def test_text_that_json_and_sse_must_escape(
    door: Door, serving: Scripted, chat_body: dict[str, Any]
) -> None:
    text = 'a "quote"\n\ndata: [DONE]\n\n\\ \u2028 \x00 end'
    serving.play = serving.say(text)
    _, chunks = await frames(door, "/v1/chat/completions", chat_body | {"stream": True})
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == text


async def test_error_event_then_done(door: Door, serving: Scripted, chat_body: dict[str, Any]) -> None:
    def play(request: Request, stream: TokenStream) -> None:
        serving.hold("hello")(request, stream)
        stream.fail(WorkerLost("the worker died"))

    serving.play = play
    _, chunks = await frames(door, "/v1/chat/completions", chat_body | {"stream": True})
    assert chunks[-1] == "[DONE]"
    assert chunks[-2] == {
        "error": {"message": "the worker died", "type": "server_error", "param": None, "code": "worker_lost"}
    }
    text = await (await door.http.get("/metrics")).text()
    assert 'muxd_http_stream_errors_total{model="org/chat-model"} 1.0' in text


async def test_a_bug_in_a_running_stream_is_told_and_logged_without_text(
    door: Door, serving: Scripted, chat_body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def play(request: Request, stream: TokenStream) -> None:
        serving.hold("hello")(request, stream)

        def broken() -> NoReturn:
            raise RuntimeError("".join(["sec", "ret"]))

        stream._take = broken  # type: ignore[method-assign]

    serving.play = play
    status, answer, _ = await door.post("/v1/chat/completions", chat_body)
    assert (status, answer["error"]["code"]) == (500, "internal_error")
    assert "secret" not in json.dumps(answer)
    assert "secret" not in caplog.text
    assert len([r for r in caplog.records if "unexpected RuntimeError" in r.getMessage()]) == 1
    assert serving.closed == [False]
    serving.play = serving.say("fine")
    assert (await door.post("/v1/chat/completions", chat_body))[0] == 200


async def test_host_pages(door: Door, serving: Scripted) -> None:
    states = {"org/chat-model": "ready", "base": "ready"}
    async with door.http.get("/health") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "ok", "models": states})
    for method in ("GET", "POST"):
        async with door.http.request(method, "/ping") as answer:
            assert answer.status == 200
    serving.by_name["base"].state = "failed"
    async with door.http.get("/health") as answer:
        assert (answer.status, (await answer.json())["models"]["base"]) == (200, "failed")
    assert (await door.http.get("/health/org/chat-model")).status == 200
    async with door.http.get("/health/base") as answer:
        assert (answer.status, await answer.json()) == (503, {"status": "failed"})
    assert (await door.http.get("/health/unknown")).status == 404
    serving.by_name["org/chat-model"].state = "failed"
    async with door.http.get("/health") as answer:
        assert (answer.status, (await answer.json())["status"]) == (503, "failed")
    for model in serving.by_name.values():
        model.state = "ready"
    serving.taking = "stopping"
    assert (await door.http.get("/health")).status == 503
    assert (await door.http.get("/health/base")).status == 503
    assert set(await (await door.http.get("/version")).json()) == {"version"}
    index = await (await door.http.get("/")).json()
    assert index["models"] == {"org/chat-model": "ready", "base": "ready"}
    async with door.http.get("/metrics") as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "muxd_http_requests_total" in await answer.text()


async def test_model_object(door: Door) -> None:
    listed = await (await door.http.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert listed["data"][0] == {
        "id": "org/chat-model",
        "object": "model",
        "created": 1700000000,
        "owned_by": "muxd",
        "root": "org/chat-model",
        "parent": None,
        "max_model_len": 512,
        "status": "ready",
    }
    for path in ("/v1/models/org/chat-model", "/v1/models/org%2Fchat-model"):
        assert await (await door.http.get(path)).json() == listed["data"][0]


async def test_tokenize_and_back(door: Door, serving: Scripted) -> None:
    ids = serving.ids("one two")
    status, answer, _ = await door.post(
        "/tokenize", {"model": "base", "prompt": "one two", "return_token_strs": True}
    )
    assert status == 200
    assert answer["tokens"] == ids
    assert (answer["count"], answer["max_model_len"]) == (len(ids), 512)
    assert "".join(answer["token_strs"]) == "one two"
    assert (await door.post("/detokenize", {"model": "base", "tokens": ids}))[1] == {"prompt": "one two"}
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": "org/chat-model", "messages": messages, "add_generation_prompt": False}
    assert (await door.post("/tokenize", body))[1]["tokens"] == serving.ids("[user] hi\n")
    status, answer, _ = await door.post("/tokenize", {"prompt": "x"})
    assert (status, answer["error"]["param"]) == (400, "model")
    del serving.by_name["base"]
    assert (await door.post("/tokenize", {"prompt": "one two"}))[1]["tokens"] == ids


async def test_request_id(door: Door, chat_body: dict[str, Any]) -> None:
    path = "/v1/chat/completions"
    assert (await door.post(path, chat_body, **{"X-Request-ID": "abc-1"}))[2]["x-request-id"] == "abc-1"
    made = (await door.post(path, chat_body))[2]["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    for bad in ("x" * 129, "a b", "ünder"):
        given = (await door.post(path, chat_body, **{"X-Request-ID": bad}))[2]["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", given)
    async with door.http.post(
        path, json=chat_body | {"stream": True}, headers={"x-request-id": "s"}
    ) as answer:
        await answer.read()
        assert answer.headers["x-request-id"] == "s"


async def test_access_line(
    door: Door, serving: Scripted, chat_body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "muxd.access")
    body = chat_body | {"messages": [{"role": "user", "content": "my secret prompt"}]}
    await door.post("/v1/chat/completions?key=sesame", body, **{"X-Request-ID": "abc"})
    await door.post("/v1/completions", {"model": "who is this", "prompt": "x"})
    await door.http.get("/health")
    lines = [r for r in caplog.records if r.name == "muxd.access"]
    text = lines[0].getMessage()
    tokens = len(serving.ids("hello world"))
    for part in (
        "id=abc method=POST path=/v1/chat/completions status=200 outcome=served ms=",
        f"model=org/chat-model prompt_tokens={len(serving.requests[0].prompt)} completion_tokens={tokens}",
        "ttft_ms=",
        "finish=stop",
    ):
        assert part in text
    assert "status=404 outcome=refused" in lines[1].getMessage()
    assert "who is this" not in caplog.text
    assert lines[2].levelname == "DEBUG"
    assert "secret" not in caplog.text
    assert "sesame" not in caplog.text


async def test_every_path_is_counted_by_its_name(door: Door) -> None:
    for path, name in (("/health/base", "/health/{id}"), ("/models/base", "/v1/models/{id}")):
        async with door.http.get(path) as answer:
            assert answer.status == 200
        series = await (await door.http.get("/metrics")).text()
        assert f'route="{name}"' in series
    assert 'route="unknown"' not in series


async def test_who_makes_prompts_hears_of_special_tokens_and_the_template(
    door: Door, serving: Scripted
) -> None:
    base = await (await door.http.get("/tokenizer_info?model=base")).json()
    assert (base["eos_token"], base["bos_token"], base["add_bos_token"]) == ("<eos>", None, False)
    assert (base["chat_template"], base["model_max_length"]) == (None, 512)
    async with door.http.get("/tokenizer_info/") as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, "model")
    del serving.by_name["base"]
    chat = await (await door.http.get("/tokenizer_info/")).json()
    assert chat["chat_template"] == TEMPLATE


async def test_a_model_that_moves_while_its_prompt_is_read_answers_all_the_same(
    door: Door, serving: Scripted
) -> None:
    """Who was there before drains by then, and takes nothing new."""
    serving.text_goes_on.clear()
    asked = asyncio.create_task(
        door.post("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 4})
    )
    await serving.text_came.wait()
    before = serving.by_name["base"]
    serving.by_name["base"] = replace(before)
    before.state = "draining"
    serving.text_goes_on.set()
    assert (await asked)[0] == 200
