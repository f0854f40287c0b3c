"""Ollama's paths: lines of objects, options, what is known of the models."""

import json
from dataclasses import replace
from typing import Any

import pytest
from support.http_door import Door, Scripted

from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import ModelNotReady, WorkerLost
from muxd.text.template import ChatTemplate

pytestmark = pytest.mark.anyio
CHAT, GENERATE = "/api/chat", "/api/generate"
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }}<tool_call>{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.name }}{{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    "{% if enable_thinking %}!{% endif %}{# </think> #}"
)


@pytest.fixture(autouse=True)
def taught(serving: Scripted) -> None:
    chat = serving.by_name["org/chat-model"]
    serving.by_name["qwen"] = replace(
        chat, name="qwen", template=ChatTemplate(TEMPLATE, {}, "test"), max_context=4096
    )


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "qwen:latest", "messages": [{"role": "user", "content": "hi"}], **fields}


def prompt(serving: Scripted) -> str:
    return serving.tokenizer.decode(serving.requests[-1].prompt)


async def lines(door: Door, path: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
    async with door.http.post(path, json=fields) as answer:
        assert (answer.status, answer.content_type) == (200, "application/x-ndjson")
        return [json.loads(line) async for line in answer.content]


async def test_a_streamed_conversation(door: Door, serving: Scripted) -> None:
    serving.play = serving.say(f"<think>So.</think>Well. {CALL}")
    found = await lines(door, CHAT, body(tools=[TOOL], think=True))
    assert {line["model"] for line in found} == {"qwen"}
    said = [line["message"] for line in found]
    assert "".join(one["content"] for one in said) == "Well."
    assert "".join(one.get("thinking", "") for one in said) == "So."
    (calls,) = [one["tool_calls"] for one in said if "tool_calls" in one]
    assert calls[0]["function"] == {"name": "weather", "arguments": {"city": "Rome"}}
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
    last = found[-1]
    assert (last["done_reason"], last["prompt_eval_count"]) == ("stop", len(serving.requests[0].prompt))
    assert last["total_duration"] >= last["eval_duration"] >= 0
    assert prompt(serving) == "weather<tool_call>[user]hi!"


async def test_a_whole_conversation_with_its_history(door: Door, serving: Scripted) -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "tool_name": "f", "content": "sunny"},
    ]
    options = {"temperature": 0, "num_predict": 7, "stop": ["xyz"], "repeat_penalty": 1.5, "num_ctx": 9}
    status, answer, _ = await door.post(CHAT, body(messages=turns, stream=False, options=options))
    assert status == 200
    assert answer["message"] == {"role": "assistant", "content": "hello world"}
    assert (answer["done"], answer["eval_count"]) == (True, len(serving.ids("hello world")))
    request = serving.requests[0]
    assert (request.max_tokens, request.sampling.temperature) == (7, 0.0)
    assert request.sampling.repetition_penalty == 1.5
    assert prompt(serving) == '[user]hi[assistant]{"a": 1}[tool]fsunny'


async def test_generating(door: Door, serving: Scripted) -> None:
    found = await lines(door, GENERATE, {"model": "qwen", "prompt": "hi", "system": "Be brief."})
    assert "".join(line["response"] for line in found) == "hello world"
    assert prompt(serving) == "[system]Be brief.[user]hi"
    for fields in ({"model": "qwen", "prompt": "hi", "raw": True}, {"model": "base", "prompt": "hi"}):
        status, answer, _ = await door.post(GENERATE, fields | {"stream": False})
        assert (status, answer["response"], prompt(serving)) == (200, "hello world", "hi")


async def test_asking_for_the_model_to_be_there(door: Door, serving: Scripted) -> None:
    for path in (CHAT, GENERATE):
        status, answer, _ = await door.post(path, {"model": "qwen", "keep_alive": "5m"})
        assert (status, answer["done_reason"], answer["done"]) == (200, "load", True)
    serving.by_name["qwen"].state = "asleep"
    assert [one["name"] for one in (await (await door.http.get("/api/ps")).json())["models"]] == [
        "org/chat-model", "base",
    ]  # fmt: skip
    assert serving.requests == []
    status, answer, _ = await door.post(CHAT, {"model": "qwen"})
    assert (status, answer["done_reason"], len(serving.streams)) == (200, "load", 1)  # who waits wakes it
    serving.play = lambda request, stream: stream.fail(ModelNotReady("qwen could not be woken"))
    status, answer, _ = await door.post(CHAT, {"model": "qwen"})
    assert (status, answer["error"]) == (503, "qwen could not be woken")


async def test_what_is_known_of_the_models(door: Door, serving: Scripted) -> None:
    serving.by_name["base"].state = "unloaded"
    listed = (await (await door.http.get("/api/tags")).json())["models"]
    assert [one["name"] for one in listed] == ["org/chat-model", "base", "qwen"]
    assert listed[0]["details"]["parameter_size"] == "135M"
    loaded = (await (await door.http.get("/api/ps")).json())["models"]
    assert [one["name"] for one in loaded] == ["org/chat-model", "qwen"]
    status, shown, _ = await door.post("/api/show", {"model": "qwen:latest"})
    assert (status, shown["capabilities"]) == (200, ["completion", "tools", "thinking"])
    assert shown["model_info"]["llama.context_length"] == 4096
    _, shown, _ = await door.post("/api/show", {"name": "base"})
    assert shown["capabilities"] == ["completion"]
    _, shown, _ = await door.post("/api/show", {"name": "org/chat-model"})
    assert shown["capabilities"] == ["completion", "tools"]  # its template knows no thoughts
    serving.by_name["base"].pooling, serving.by_name["base"].generates = "mean", False
    _, shown, _ = await door.post("/api/show", {"name": "base"})
    assert shown["capabilities"] == ["embedding"]
    assert (await (await door.http.get("/api/version")).json())["version"].count(".") == 2


@pytest.mark.parametrize(
    ("path", "change", "word"),
    [
        (CHAT, {"model": "unknown"}, "unknown"),
        (CHAT, {"options": {"temperature": 9}}, "options.temperature"),
        (CHAT, {"options": {"stop": 3}}, "options.stop"),
        (CHAT, {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        (CHAT, {"format": "xml"}, "format"),
        (CHAT, {"format": {"not": {}}}, "format"),
        (GENERATE, {"prompt": "x", "suffix": "y"}, "suffix"),
        (GENERATE, {"prompt": "x", "raw": True, "system": "y"}, "system"),
    ],
)
async def test_a_refusal(door: Door, serving: Scripted, path: str, change: dict[str, Any], word: str) -> None:
    status, answer, _ = await door.post(path, body() | change)
    assert status == (404 if word == "unknown" else 400)
    assert set(answer) == {"error"}
    assert word in answer["error"]
    assert serving.requests == []


async def test_a_stream_that_fails(door: Door, serving: Scripted) -> None:
    def play(request: Request, stream: TokenStream) -> None:
        serving.hold("hello")(request, stream)
        stream.fail(WorkerLost("the worker died"))

    serving.play = play
    assert (await lines(door, CHAT, body()))[-1] == {"error": "the worker died"}
