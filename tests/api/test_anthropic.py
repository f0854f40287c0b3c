"""/v1/messages: blocks, events, and errors in its own shape."""

import json
from dataclasses import replace
from typing import Any

import pytest
from support.http_door import Door, Scripted

from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import WorkerLost
from muxd.text.template import ChatTemplate

pytestmark = pytest.mark.anyio
PATH = "/v1/messages"
TOOL: dict[str, Any] = {"name": "weather", "input_schema": {"type": "object", "properties": {}}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }}<tool_call>{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.reasoning_content }}{{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.id }}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}{% if enable_thinking %}!{% endif %}{# </think> #}"
)


@pytest.fixture(autouse=True)
def taught(serving: Scripted) -> None:
    base = serving.by_name["base"]
    serving.by_name["base"] = replace(base, template=ChatTemplate(TEMPLATE, {}, "test"), max_context=4096)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "base", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}], **fields}


def prompt(serving: Scripted) -> str:
    return serving.tokenizer.decode(serving.requests[-1].prompt)


async def events(door: Door, fields: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    async with door.http.post(PATH, json=fields | {"stream": True}) as answer:
        assert answer.status == 200
        blocks = (await answer.text()).split("\n\n")[:-1]
    pairs = [block.split("\n") for block in blocks]
    found = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]
    assert all(name == data["type"] for name, data in found)
    return found


async def test_a_whole_answer(door: Door, serving: Scripted) -> None:
    status, answer, _ = await door.post(PATH, body(system="Be brief."))
    assert status == 200
    assert answer.pop("id").startswith("msg_")
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": "base",
        "content": [{"type": "text", "text": "hello world", "citations": None}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": {
            "input_tokens": len(serving.requests[0].prompt),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": len(serving.ids("hello world")),
            "output_tokens_details": {"thinking_tokens": 0},
            "server_tool_use": None,
            "cache_creation": None,
            "inference_geo": None,
            "service_tier": "standard",
        },
    }
    assert prompt(serving) == "[system]Be brief.[user]hi[assistant]"


async def test_why_it_stopped(door: Door, serving: Scripted) -> None:
    _, answer, _ = await door.post(PATH, body(stop_sequences=[" wor"]))
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", " wor")
    assert [block["text"] for block in answer["content"]] == ["hello"]
    last = (await events(door, body(stop_sequences=["xyz", " wor"])))[-2][1]
    assert (last["delta"]["stop_reason"], last["delta"]["stop_sequence"]) == ("stop_sequence", " wor")
    serving.play = serving.say("hello", finish="length")
    _, answer, _ = await door.post(PATH, body())
    assert answer["stop_reason"] == "max_tokens"


async def test_blocks_and_the_turn_after(door: Door, serving: Scripted) -> None:
    serving.play = serving.say(f"<think>So.</think>Well. {CALL}")
    status, answer, _ = await door.post(
        PATH, body(tools=[TOOL], thinking={"type": "enabled", "budget_tokens": 9})
    )
    assert status == 200
    thinking, text, call = answer["content"]
    assert thinking == {"type": "thinking", "thinking": "So.", "signature": ""}
    assert (text["type"], text["text"]) == ("text", "Well.")
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"city": "Rome"})
    assert answer["stop_reason"] == "tool_use"
    assert prompt(serving) == "weather<tool_call>[user]hi[assistant]!"
    result = {
        "type": "tool_result",
        "tool_use_id": call["id"],
        "content": [{"type": "text", "text": "sunny"}],
    }
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": answer["content"]},
        {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
    ]
    status, _, _ = await door.post(PATH, body(tools=[TOOL], messages=turns))
    assert status == 200
    assert prompt(serving) == (
        f'weather<tool_call>[user]hi[assistant]So.Well.{call["id"]}{{"city": "Rome"}}'
        "[tool]sunny[user]and?[assistant]"
    )


@pytest.mark.parametrize("each", [1, 100])
async def test_the_events_build_the_answer(door: Door, serving: Scripted, each: int) -> None:
    serving.play = serving.say(f"<think>So.</think>Well. {CALL}", each_wakeup=each)
    found = await events(door, body(tools=[TOOL]))
    names = [name for name, _ in found if name != "content_block_delta"]
    assert names[:2] == ["message_start", "ping"]
    assert names[2:-2] == ["content_block_start", "content_block_stop"] * 3
    assert names[-2:] == ["message_delta", "message_stop"]
    assert found[0][1]["message"]["content"] == []
    kinds = [data["content_block"]["type"] for name, data in found if name == "content_block_start"]
    assert kinds == ["thinking", "text", "tool_use"]
    said = {"thinking_delta": "", "text_delta": "", "input_json_delta": ""}
    for name, data in found:
        if name == "content_block_delta":
            assert kinds[data["index"]][:4] in data["delta"]["type"] or kinds[data["index"]] == "tool_use"
            kind = data["delta"].pop("type")
            said[kind] += next(iter(data["delta"].values()))
    assert said == {"thinking_delta": "So.", "text_delta": "Well.", "input_json_delta": '{"city": "Rome"}'}
    assert found[-2][1]["delta"]["stop_reason"] == "tool_use"
    assert found[-2][1]["usage"]["output_tokens"] > 0


async def test_an_answer_that_goes_on(door: Door, serving: Scripted) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The answer is "}]
    status, _, _ = await door.post(PATH, body(messages=turns))
    assert (status, prompt(serving)) == (200, "[user]hi[assistant]The answer is ")


async def test_counting(door: Door, serving: Scripted) -> None:
    fields = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "tools": [TOOL]}
    status, answer, _ = await door.post(f"{PATH}/count_tokens", fields)
    assert (status, serving.requests) == (200, [])
    await door.post(PATH, body(tools=[TOOL]))
    assert answer == {"input_tokens": len(serving.requests[0].prompt)}


async def test_the_list_of_models(door: Door) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    async with door.http.get("/v1/models", headers=headers) as answer:
        listed = await answer.json()
    assert (listed["first_id"], listed["has_more"]) == ("org/chat-model", False)
    assert listed["data"][1]["type"] == "model"


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        ({"max_tokens": None}, "invalid_request_error", "max_tokens"),
        ({"messages": []}, "invalid_request_error", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "invalid_request_error",
         "content[0]"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "invalid_request_error", "tools[0].type"),
        ({"tool_choice": {"type": "tool", "name": "x"}, "tools": [TOOL]}, "invalid_request_error",
         "tool_choice"),
        ({"temperature": 7}, "invalid_request_error", "temperature"),
        ({"stop_sequences": [""]}, "invalid_request_error", "stop"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
         "invalid_request_error",
         "output_config"),
        ({"model": "claude"}, "not_found_error", "claude"),
    ],
)  # fmt: skip
async def test_a_refusal(door: Door, serving: Scripted, change: dict[str, Any], kind: str, word: str) -> None:
    status, answer, headers = await door.post(PATH, body(**change))
    assert status == (404 if kind == "not_found_error" else 400)
    assert set(answer) == {"type", "error", "request_id"}
    assert (answer["type"], answer["error"]["type"]) == ("error", kind)
    assert word in answer["error"]["message"]
    assert answer["request_id"] == headers["x-request-id"]
    assert serving.requests == []


async def test_a_stream_that_fails(door: Door, serving: Scripted) -> None:
    def play(request: Request, stream: TokenStream) -> None:
        serving.hold("hello")(request, stream)
        stream.fail(WorkerLost("the worker died"))

    serving.play = play
    name, data = (await events(door, body()))[-1]
    assert (name, data["error"]) == ("error", {"type": "api_error", "message": "the worker died"})


async def test_a_model_that_is_not_there_is_told_in_the_words_of_who_asks(door: Door) -> None:
    async with door.http.get("/v1/models/unknown", headers={"anthropic-version": "2023-06-01"}) as answer:
        told = await answer.json()
    assert (answer.status, told["type"], told["error"]["type"]) == (404, "error", "not_found_error")
    async with door.http.get("/v1/models/unknown") as answer:
        assert (await answer.json())["error"]["code"] == "model_not_found"
