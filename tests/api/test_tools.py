"""Tools and reasoning through the door: what the template is told, and what the client gets back."""

import json
from dataclasses import replace
from typing import Any

import pytest
import tokenizers
from support.http_door import Door, Scripted
from tokenizers import decoders, models, pre_tokenizers

from muxd.text.template import ChatTemplate
from muxd.text.tokenizer import Tokenizer

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "the weather", "parameters": PARAMETERS},
}
HERMES = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}<tool_call>{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}</think>{% endif %}"
)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def teach(serving: Scripted, source: str) -> None:
    base = serving.by_name["base"]
    serving.by_name["base"] = replace(base, template=ChatTemplate(source, {}, "test"), max_context=4096)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "base", "messages": [USER], "tools": [TOOL], **fields}


async def test_a_whole_answer_with_a_call(door: Door, serving: Scripted) -> None:
    teach(serving, HERMES)
    serving.play = serving.say(f"<think>\nSo.\n</think>\n\nLet me see.\n{CALL}")
    status, answer, _ = await door.post(CHAT, body())
    assert status == 200
    (choice,) = answer["choices"]
    (call,) = choice["message"].pop("tool_calls")
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    assert choice["message"] == {
        "role": "assistant",
        "content": "Let me see.",
        "refusal": None,
        "reasoning_content": "So.",
        "reasoning": "So.",
    }
    assert choice["finish_reason"] == "tool_calls"
    assert serving.tokenizer.decode(serving.requests[0].prompt) == json.dumps(TOOL) + "<tool_call>hi"


@pytest.mark.parametrize("each", [1, 3, 100])
async def test_a_streamed_answer_with_calls(door: Door, serving: Scripted, each: int) -> None:
    teach(serving, HERMES)
    serving.play = serving.say(f"<think>So.</think>{CALL}{CALL}", each_wakeup=each)
    stream = await door.openai.chat.completions.create(**body(stream=True))
    calls: list[list[str]] = []
    reasoning = content = finish = ""
    async for chunk in stream:
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning_content", "")
        for delta in choice.delta.tool_calls or ():
            if delta.id:
                assert (delta.index, delta.type) == (len(calls), "function")
                calls.append([delta.function.name, ""])
            calls[delta.index][1] += delta.function.arguments
        finish = choice.finish_reason or finish
    assert (reasoning, content, finish) == ("So.", "", "tool_calls")
    assert calls == [["weather", '{"city": "Rome"}']] * 2


async def test_one_call_without_parallel_ones(door: Door, serving: Scripted) -> None:
    teach(serving, HERMES)
    serving.play = serving.say(CALL * 3)
    answer = await door.openai.chat.completions.create(**body(parallel_tool_calls=False))
    assert len(answer.choices[0].message.tool_calls) == 1
    assert answer.choices[0].message.content is None


async def test_a_template_that_knows_no_tools_is_told_in_words(door: Door, serving: Scripted) -> None:
    teach(serving, "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    serving.play = serving.say('{"name": "weather", "arguments": {"city": "Rome"}}')
    answer = await door.openai.chat.completions.create(**body())
    (call,) = answer.choices[0].message.tool_calls
    told = serving.tokenizer.decode(serving.requests[0].prompt)
    assert told.startswith("[system]You may call functions.")
    assert json.dumps(TOOL["function"], separators=(",", ":")) in told
    history = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    await door.openai.chat.completions.create(**body(messages=history))
    told = serving.tokenizer.decode(serving.requests[1].prompt)
    assert told.endswith(
        '[user]hi[assistant]{"name":"weather","arguments":{"city":"Rome"}}[user]Result of weather:\nsunny'
    )


async def test_no_tools_where_none_are_wanted(door: Door, serving: Scripted) -> None:
    teach(serving, HERMES)
    serving.play = serving.say(CALL)
    changes: list[dict[str, Any]] = [{"tool_choice": "none"}, {"tools": []}, {"tools": None}]
    for fields in changes:
        answer = await door.openai.chat.completions.create(**body(**fields))
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (CALL, "stop")
        assert serving.tokenizer.decode(serving.requests[-1].prompt) == "hi"


async def test_what_the_operator_says(door: Door, serving: Scripted) -> None:
    teach(serving, HERMES)
    base = serving.by_name["base"]
    serving.by_name["base"] = replace(base, tool_parser="none", reasoning="none")
    text = f"<think>So.</think>{CALL}"
    serving.play = serving.say(text)
    answer = await door.openai.chat.completions.create(**body())
    assert answer.choices[0].message.content == text
    serving.by_name["base"] = replace(base, tool_parser="json", reasoning="mistral")
    serving.play = serving.say('[THINK]So.[/THINK]{"name": "weather", "arguments": {}}')
    answer = await door.openai.chat.completions.create(**body())
    assert answer.choices[0].message.tool_calls[0].function.arguments == "{}"
    assert answer.choices[0].message.reasoning_content == "So."


async def test_a_prompt_that_has_begun_to_think(door: Door, serving: Scripted) -> None:
    teach(serving, "{{ messages[0].content }}<think>\n{# </think> #}")
    serving.play = serving.say("So.</think>Hi.")
    answer = await door.openai.chat.completions.create(**body(tools=None))
    assert (answer.choices[0].message.reasoning, answer.choices[0].message.content) == ("So.", "Hi.")


async def test_markers_that_are_special_tokens(door: Door, serving: Scripted) -> None:
    """They are left out of any other text."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([*sorted(pre_tokenizers.ByteLevel.alphabet())])
    inner.add_special_tokens(["[TOOL_CALLS]", "[ARGS]"])
    tokenizer = Tokenizer(inner, {}, frozenset())
    teach(serving, "{{ tools }}[TOOL_CALLS]{{ messages[0].content }}")
    base = serving.by_name["base"]
    serving.by_name["base"] = replace(base, tokenizer=tokenizer, vocab_size=tokenizer.vocab_size)
    serving.tokenizer = tokenizer
    serving.play = serving.say('Well.[TOOL_CALLS]weather[ARGS]{"city":"Rome"}')
    answer = await door.openai.chat.completions.create(**body())
    message = answer.choices[0].message
    assert (message.content, message.tool_calls[0].function.name) == ("Well.", "weather")
    answer = await door.openai.chat.completions.create(**body(tools=None))
    assert answer.choices[0].message.content == 'Well.weather{"city":"Rome"}'


async def test_scores_beside_a_call(door: Door, serving: Scripted) -> None:
    teach(serving, HERMES)
    serving.play = serving.say(f"Well. {CALL}", logprobs=True)
    tokens = len(serving.ids(f"Well. {CALL}"))
    async with door.http.post(CHAT, json=body(stream=True, logprobs=True)) as answer:
        lines = [line.removeprefix(b"data: ") async for line in answer.content if line.startswith(b"data: {")]
    choices = [json.loads(line)["choices"][0] for line in lines]
    assert sum(len(choice["logprobs"]["content"]) for choice in choices if choice["logprobs"]) == tokens
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "Well."


async def test_a_call_that_must_be(door: Door, serving: Scripted) -> None:
    """The answer is held to the form of a call, whatever dialect the model was taught."""
    teach(serving, HERMES)
    call = {"name": "weather", "arguments": {"city": "Rome"}}
    other = {"type": "function", "function": {"name": "time"}}
    one, time = _form("weather", PARAMETERS), _form("time", {"type": "object"})
    several = {"type": "array", "items": {"anyOf": [one, time]}, "minItems": 1, "maxItems": 16}
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, parallel, form, text in (
        ("required", True, several, json.dumps([call])),
        ("required", False, {"anyOf": [one, time]}, json.dumps(call)),
        (named, True, one, json.dumps(call)),
    ):
        serving.play = serving.say(text)
        answer = await door.openai.chat.completions.create(
            **body(tools=[TOOL, other], tool_choice=choice, parallel_tool_calls=parallel)
        )
        (found,) = answer.choices[0].message.tool_calls
        assert (found.function.name, found.function.arguments) == ("weather", json.dumps(call["arguments"]))
        assert answer.choices[0].finish_reason == "tool_calls"
        constraint = serving.requests[-1].sampling.constraint
        assert constraint is not None
        assert (constraint.kind, json.loads(constraint.text)) == ("json_schema", form)
    told = serving.tokenizer.decode(serving.requests[-1].prompt)
    assert "time" not in told


def _form(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


async def test_definitions_of_several_tools(door: Door, serving: Scripted) -> None:
    teach(serving, HERMES)
    parameters = {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/Place"}},
        "$defs": {"Place": {"type": "object", "properties": {"in": {"$ref": "#/$defs/Place"}}}},
    }
    tools = [
        {"type": "function", "function": {"name": name, "parameters": parameters}} for name in ("a", "b")
    ]
    serving.play = serving.say('[{"name": "a", "arguments": {}}]')
    await door.openai.chat.completions.create(**body(tools=tools, tool_choice="required"))
    constraint = serving.requests[-1].sampling.constraint
    assert constraint is not None
    form = json.loads(constraint.text)
    assert set(form["$defs"]) == {"0-Place", "1-Place"}
    assert form["$defs"]["1-Place"]["properties"]["in"] == {"$ref": "#/$defs/1-Place"}
    assert form["items"]["anyOf"][0]["properties"]["arguments"]["properties"]["at"] == {
        "$ref": "#/$defs/0-Place"
    }


async def test_what_is_held_to_a_form_has_no_thoughts(door: Door, serving: Scripted) -> None:
    teach(serving, "{{ messages[0].content }}<think>\\n{# </think> #}")
    serving.play = serving.say("{}")
    answer = await door.openai.chat.completions.create(
        **body(tools=None, response_format={"type": "json_object"})
    )
    assert answer.choices[0].message.content == "{}"
