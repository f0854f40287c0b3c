"""/v1/responses through the official client, and event by event."""

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
PATH = "/v1/responses"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL: dict[str, Any] = {"type": "function", "name": "weather", "parameters": PARAMETERS}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }}<tool_call>{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.reasoning_content }}{{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.id }}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    "{# </think> #}"
)


@pytest.fixture(autouse=True)
def taught(serving: Scripted) -> None:
    base = serving.by_name["base"]
    serving.by_name["base"] = replace(base, template=ChatTemplate(TEMPLATE, {}, "test"), max_context=4096)


def prompt(serving: Scripted) -> str:
    return serving.tokenizer.decode(serving.requests[-1].prompt)


async def test_a_whole_answer(door: Door, serving: Scripted) -> None:
    answer = await door.openai.responses.create(
        model="base", input="hi", instructions="Be brief.", max_output_tokens=50, metadata={"a": "b"}
    )
    assert (answer.output_text, answer.status, answer.error) == ("hello world", "completed", None)
    assert answer.id.startswith("resp_")
    assert prompt(serving) == "[system]Be brief.[user]hi"
    assert serving.requests[-1].max_tokens == 50
    assert (answer.usage.input_tokens, answer.store) == (len(serving.requests[-1].prompt), False)
    assert (answer.instructions, answer.metadata, answer.max_output_tokens) == ("Be brief.", {"a": "b"}, 50)


async def test_reasoning_text_and_calls_and_the_turn_after(door: Door, serving: Scripted) -> None:
    serving.play = serving.say(f"<think>So.</think>Well. {CALL}{CALL}")
    answer = await door.openai.responses.create(model="base", input="hi", tools=[TOOL])
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "function_call"]
    assert answer.output[0].content[0].text == "So."
    assert answer.output_text == "Well."
    assert json.loads(answer.output[2].arguments) == {"city": "Rome"}
    assert answer.usage.output_tokens_details.reasoning_tokens > 0
    back = [item.model_dump(exclude_none=True) for item in answer.output]
    results = [
        {"type": "function_call_output", "call_id": one.call_id, "output": "sunny"}
        for one in answer.output[2:]
    ]
    serving.play = serving.say("Sunny.")
    user = {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    again = await door.openai.responses.create(model="base", input=[user, *back, *results], tools=[TOOL])
    assert again.output_text == "Sunny."
    ids = [one.call_id for one in answer.output[2:]]
    calls = "".join(f'{id}{{"city": "Rome"}}' for id in ids)
    assert prompt(serving) == f"weather<tool_call>[user]hi[assistant]So.Well.{calls}[tool]sunny[tool]sunny"


@pytest.mark.parametrize("each", [1, 100])
async def test_the_events_build_the_answer(door: Door, serving: Scripted, each: int) -> None:
    serving.play = serving.say(f"<think>So.</think>Well. {CALL}", each_wakeup=each)
    events: list[Any] = []
    async with door.openai.responses.stream(model="base", input="hi", tools=[TOOL]) as stream:
        async for event in stream:
            events.append(event)
        final = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if not event.type.endswith(".delta")]
    part = ["response.output_item.added", "response.content_part.added"]
    ended = ["response.content_part.done", "response.output_item.done"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        *(*part, "response.reasoning_text.done", *ended),
        *(*part, "response.output_text.done", *ended),
        *("response.output_item.added", "response.function_call_arguments.done", ended[1]),
        "response.completed",
    ]
    assert final.output_text == "Well."
    assert final.output[2].arguments == '{"city": "Rome"}'
    said = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    assert said == '{"city": "Rome"}'
    added = [event.item.type for event in events if event.type == "response.output_item.added"]
    assert added == ["reasoning", "message", "function_call"]


async def test_an_answer_that_was_cut_short(door: Door, serving: Scripted) -> None:
    serving.play = serving.say("hello", finish="length")
    answer = await door.openai.responses.create(model="base", input="hi")
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    async with door.http.post(PATH, json={"model": "base", "input": "hi", "stream": True}) as streamed:
        text = await streamed.text()
    assert "event: response.incomplete\n" in text
    assert "[DONE]" not in text


async def test_a_stream_that_fails(door: Door, serving: Scripted) -> None:
    def play(request: Request, stream: TokenStream) -> None:
        serving.hold("hello")(request, stream)
        stream.fail(WorkerLost("the worker died"))

    serving.play = play
    async with door.http.post(PATH, json={"model": "base", "input": "hi", "stream": True}) as answer:
        frames = [json.loads(line[6:]) async for line in answer.content if line.startswith(b"data: ")]
    assert (frames[-2]["type"], frames[-2]["message"]) == ("error", "the worker died")
    assert (frames[-1]["type"], frames[-1]["response"]["status"]) == ("response.failed", "failed")
    assert frames[-1]["response"]["error"]["code"] == "worker_lost"


async def test_scores(door: Door, serving: Scripted) -> None:
    serving.play = serving.say("hello world", logprobs=True)
    answer = await door.openai.responses.create(
        model="base", input="hi", include=["message.output_text.logprobs"], top_logprobs=1
    )
    scores = answer.output[0].content[0].logprobs
    assert "".join(one.token for one in scores) == "hello world"
    assert len(scores[0].top_logprobs) == 1


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "f"}]}, "input[0].output"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "file_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10_000}, "max_output_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"input": "x " * 9000}, "input"),
        ({"model": "unknown"}, "model"),
    ],
)
async def test_a_refusal_names_the_field(
    door: Door, serving: Scripted, change: dict[str, Any], param: str
) -> None:
    status, answer, _ = await door.post(PATH, {"model": "base", "input": "hi"} | change)
    assert (status, answer["error"]["param"]) == (404 if param == "model" else 400, param)
    assert serving.requests == []


SPACE: dict[str, Any] = {"type": "namespace", "name": "sky", "description": "Of the sky", "tools": [TOOL]}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_says_of_which_namespace_its_function_is(
    door: Door, serving: Scripted, stream: bool
) -> None:
    serving.play = serving.say(CALL)
    other = TOOL | {"name": "river"}
    asked: dict[str, Any] = {"model": "base", "input": "hi", "tools": [other, SPACE]}
    if stream:
        async with door.openai.responses.stream(**asked) as events:
            answer = (await events.get_final_response()).model_dump()
    else:
        answer = (await door.openai.responses.create(**asked)).model_dump()
    (call,) = answer["output"]
    assert (call["name"], call["namespace"]) == ("weather", "sky")
    assert prompt(serving) == "river<tool_call>weather<tool_call>[user]hi"
    assert [tool["type"] for tool in answer["tools"]] == ["function", "namespace"]
    again = [{"role": "user", "content": "hi"}, call, {
        "type": "function_call_output", "call_id": call["call_id"], "output": "sunny"
    }]  # fmt: skip
    serving.play = serving.say("Sunny.")
    answer = await door.openai.responses.create(**asked | {"input": again})
    assert answer.output_text == "Sunny."


async def test_tools_that_the_server_would_have_to_run_are_left_out_and_named(
    door: Door, serving: Scripted
) -> None:
    body = {"model": "base", "input": "hi", "tools": [TOOL, {"type": "web_search"}]}
    status, answer, headers = await door.post(PATH, body)
    assert (status, headers["x-muxd-ignored"]) == (200, "tools.web_search")
    assert [tool["type"] for tool in answer["tools"]] == ["function"]
    assert prompt(serving) == "weather<tool_call>[user]hi"


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([TOOL, SPACE | {"tools": [TOOL | {"name": None}]}], "tools[1].tools[0].name"),
        ([SPACE | {"tools": [SPACE]}], "tools[0].tools[0].type"),
        ([TOOL, SPACE], "tools[1].tools[0].function.name"),
    ],
)
async def test_a_tool_that_is_none_is_named_by_its_place(
    door: Door, tools: list[dict[str, Any]], param: str
) -> None:
    status, answer, _ = await door.post(PATH, {"model": "base", "input": "hi", "tools": tools})
    assert (status, answer["error"]["param"]) == (400, param)
