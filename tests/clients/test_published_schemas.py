"""Every answer, and every frame of every stream, is as OpenAI's and Anthropic's published schemas say."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from clients.vendor_schemas import published

pytestmark = pytest.mark.clients
MODEL = "smollm2-135m-instruct"
USER: Any = [{"role": "user", "content": "Name three rivers."}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FEW = {"max_tokens": 3}
CALL: Any = {
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": CITY}}],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_tokens": 30,
}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY, "strict": True}}
CHATS: dict[str, Any] = {
    "plain": FEW,
    "stopped": {"max_tokens": 16, "stop": [" "]},
    "scores": FEW | {"logprobs": True, "top_logprobs": 2},
    "two": FEW | {"n": 2, "temperature": 1.0},
    "call": CALL,
    "form": {"max_tokens": 20, "response_format": FORM},
}
COMPLETIONS: dict[str, Any] = {
    "plain": {},
    "echo": {"echo": True},
    "scores": {"logprobs": 2},
    "scored echo": {"echo": True, "logprobs": 2},
    "two of two": {"n": 2, "prompt": ["One", "Two"], "temperature": 1.0},
}
FLAT = {"type": "function", "name": "weather", "description": "of a city", "parameters": CITY, "strict": True}
RESPONSES: dict[str, Any] = {
    "plain": {"max_output_tokens": 3},
    "complete": {"max_output_tokens": 30, "text": {"format": {"type": "json_schema", **FORM["json_schema"]}}},
    "scores": {"max_output_tokens": 3, "include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "call": {
        "tools": [FLAT],
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
        "max_output_tokens": 30,
    },
    "told": {
        "max_output_tokens": 2,
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "user": "me",
        "truncation": "disabled",
        "reasoning": {"effort": "low"},
        "temperature": 0.5,
        "top_p": 0.9,
    },
}
TOOL = {"name": "weather", "description": "of a city", "input_schema": CITY}
MESSAGES: dict[str, Any] = {
    "plain": {},
    "stopped": {"max_tokens": 16, "stop_sequences": [" "]},
    "call": {"tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 30},
    "form": {"max_tokens": 20, "output_config": {"format": {"type": "json_schema", "schema": CITY}}},
}


@pytest.fixture(scope="module")
def door(url: str, key: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=240) as client:
        yield client


def answer(door: httpx.Client, path: str, body: Any, status: int = 200, **headers: str) -> Any:
    got = door.post(path, json=body, headers=headers)
    assert got.status_code == status, got.text
    assert got.headers["content-type"] == "application/json"
    return got.json()


def events(door: httpx.Client, path: str, body: Any) -> list[tuple[str, Any]]:
    """Name and data of each, but OpenAI's ``[DONE]``."""
    found: list[tuple[str, Any]] = []
    name = ""
    with door.stream("POST", path, json=body | {"stream": True}) as got:
        assert got.status_code == 200, got.read()
        assert got.headers["content-type"].startswith("text/event-stream")
        for line in got.iter_lines():
            kind, _, said = line.partition(": ")
            assert kind in ("event", "data", ""), line
            if kind == "event":
                name = said
            elif kind == "data" and said != "[DONE]":
                found.append((name, json.loads(said)))
                name = ""
    assert found
    return found


# ---- OpenAI's -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CHATS)
def test_chat(door: httpx.Client, case: str) -> None:
    body = {"model": MODEL, "messages": USER} | CHATS[case]
    whole = answer(door, "/v1/chat/completions", body)
    published("openai").check("CreateChatCompletionResponse", whole)
    assert len(whole["choices"]) == body.get("n", 1)
    assert (case == "scores") == bool(whole["choices"][0]["logprobs"])
    assert (case == "call") == ("tool_calls" in whole["choices"][0]["message"])
    frames = events(door, "/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
    for _, frame in frames:
        published("openai").check("CreateChatCompletionStreamResponse", frame)
    assert frames[-1][1]["usage"]["completion_tokens"]


@pytest.mark.parametrize("case", COMPLETIONS)
def test_completions(door: httpx.Client, case: str) -> None:
    body = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 2} | COMPLETIONS[case]
    whole = answer(door, "/v1/completions", body)
    published("openai").check("CreateCompletionResponse", without_nulls(whole))
    assert len(whole["choices"]) == (4 if case == "two of two" else 1)
    assert ("scores" in case or "scored" in case) == bool(whole["choices"][0]["logprobs"])
    for _, frame in events(door, "/v1/completions", body):
        published("openai").check("CreateCompletionResponse", without_nulls(frame))


def without_nulls(said: Any) -> Any:
    """Of completions two things are described wrongly: OpenAI's own frames have no ``finish_reason`` before
    the last one, and nothing is known of an echo's first token."""
    for choice in said["choices"]:
        if choice["finish_reason"] is None and said.get("usage") is None:
            choice["finish_reason"] = "stop"
        scores = choice["logprobs"]
        if scores and scores["token_logprobs"][0] is None:
            assert scores["top_logprobs"][0] is None
            choice["logprobs"] = {name: values[1:] for name, values in scores.items()}
    return said


@pytest.mark.parametrize("case", RESPONSES)
def test_responses(door: httpx.Client, case: str) -> None:
    body = {"model": MODEL, "input": "Name a city and a river."} | RESPONSES[case]
    whole = answer(door, "/v1/responses", body)
    published("openai").check("Response", whole)
    kinds, calls = [], []
    for name, event in events(door, "/v1/responses", body):
        assert event["type"] == name
        published("openai").check("ResponseStreamEvent", event)
        kinds.append(name)
        if name in ("response.output_item.added", "response.output_item.done"):
            calls.append(event["item"]["type"] == "function_call")
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-1] == f"response.{whole['status']}"
    item = "function_call" if case == "call" else "message"
    assert calls == [case == "call"] * 2
    assert ("response.function_call_arguments.delta" in kinds) == (case == "call")
    assert ("response.function_call_arguments.done" in kinds) == (case == "call")
    assert [one["type"] for one in whole["output"]] == [item]


@pytest.mark.parametrize("case", [{}, {"encoding_format": "base64"}, {"dimensions": 8}])
def test_embeddings(door: httpx.Client, case: Any) -> None:
    """In base64, which the description leaves out, is what the same numbers are."""
    whole = answer(door, "/v1/embeddings", {"model": MODEL, "input": ["a river", "a city"]} | case)
    for one in whole["data"]:
        if case.get("encoding_format") == "base64":
            size = len(base64.b64decode(one["embedding"]))
            assert size
            one["embedding"] = [0.0] * (size // 4)
    published("openai").check("CreateEmbeddingResponse", whole)
    assert [one["index"] for one in whole["data"]] == [0, 1]


def test_models(door: httpx.Client) -> None:
    listed = door.get("/v1/models").json()
    published("openai").check("ListModelsResponse", listed)
    assert len(listed["data"]) == 2
    published("openai").check("Model", door.get(f"/v1/models/{MODEL}").json())


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
)
def test_errors(door: httpx.Client, path: str) -> None:
    body = {"model": "unknown", "messages": USER, "prompt": "a", "input": "a"}
    for status, asked in [(404, body), (400, {}), (400, body | {"model": 1})]:
        published("openai").check("ErrorResponse", answer(door, path, asked, status))
    stranger = answer(door, path, body, 401, Authorization="Bearer sk-wrong")
    published("openai").check("ErrorResponse", stranger)
    published("openai").check("ErrorResponse", door.get("/v1/nowhere").json())
    published("openai").check("ErrorResponse", door.get("/v1/chat/completions").json())


# ---- Anthropic's ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(door: httpx.Client, case: str) -> None:
    body = {"model": MODEL, "messages": USER, "max_tokens": 3} | MESSAGES[case]
    whole = answer(door, "/v1/messages", body)
    published("anthropic").check("Message", whole)
    assert [one["type"] for one in whole["content"]] == ["tool_use" if case == "call" else "text"]
    kinds, blocks = [], []
    for name, event in events(door, "/v1/messages", body):
        assert event["type"] == name
        kinds.append(name)
        if name in ("content_block_start", "content_block_delta"):
            blocks.append(event.get("content_block", event.get("delta"))["type"])
        # No schema has it: it is the one that clients pass over.
        if name != "ping":
            published("anthropic").check("MessageStreamEvent", event)
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    wanted = ("tool_use", "input_json_delta") if case == "call" else ("text", "text_delta")
    assert (blocks[0], set(blocks[1:])) == (wanted[0], {wanted[1]})
    counted = {name: body[name] for name in ("model", "messages", "tools") if name in body}
    published("anthropic").check(
        "CountMessageTokensResponse", answer(door, "/v1/messages/count_tokens", counted)
    )


def test_models_and_errors_of_anthropic(door: httpx.Client) -> None:
    version = {"anthropic-version": "2023-06-01"}
    published("anthropic").check("ListResponse_ModelInfo_", door.get("/v1/models", headers=version).json())
    published("anthropic").check("ModelInfo", door.get(f"/v1/models/{MODEL}", headers=version).json())
    body = {"model": MODEL, "messages": USER, "max_tokens": 1}
    wrong = [
        (404, body | {"model": "unknown"}, {}),
        (400, {}, {}),
        (401, body, {"Authorization": "Bearer sk-wrong"}),
    ]
    for status, asked, headers in wrong:
        told = answer(door, "/v1/messages", asked, status, **headers)
        published("anthropic").check("ErrorResponse", told)
    for told in (door.get("/v1/messages").json(), door.get("/v1/models/unknown", headers=version).json()):
        published("anthropic").check("ErrorResponse", told)
