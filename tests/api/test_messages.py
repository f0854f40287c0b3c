"""What of a conversation reaches the model's template."""

from dataclasses import replace
from typing import Any

import pytest
from support.http_door import Door, Scripted

from muxd.text.template import ChatTemplate

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


async def prompt_of(door: Door, serving: Scripted, source: str, *messages: dict[str, Any]) -> str:
    """The text that a template makes of ``messages``, sent to both endpoints that render."""
    model = replace(serving.by_name["base"], template=ChatTemplate(source, {}, "test"))
    serving.by_name["base"] = model
    status, answer, _ = await door.post(CHAT, {"model": "base", "messages": messages})
    assert status == 200, answer
    _, tokenized, _ = await door.post("/tokenize", {"model": "base", "messages": messages})
    assert serving.requests[-1].prompt == tokenized["tokens"]
    return serving.tokenizer.decode(serving.requests[-1].prompt)


async def test_a_call_and_its_result(door: Door, serving: Scripted) -> None:
    source = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ m.tool_call_id }}"
        "{% for c in m.tool_calls %}{{ c.id }}{{ c.function.arguments | tojson }}{% endfor %};{% endfor %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
    expected = 'user:hi;assistant:c1{"city": "Rome"};tool:sunnyc1;'
    assert await prompt_of(door, serving, source, USER, call, result) == expected


async def test_every_field_of_a_message(door: Door, serving: Scripted) -> None:
    source = "{% for m in messages %}{{ m | tojson(sort_keys=true) }}{% endfor %}"
    more = {"name": "ann", "reasoning": "so", "refusal": "no", "unheard_of": {"a": [1, None]}, "audio": None}
    shown = await prompt_of(door, serving, source, {"role": "assistant", "content": "x", **more})
    assert shown == (
        '{"content": "x", "name": "ann", "reasoning": "so", "reasoning_content": "so", "refusal": "no", '
        '"role": "assistant", "thinking": "so", "unheard_of": {"a": [1, null]}}'
    )


async def test_parts_that_are_text_by_another_name(door: Door, serving: Scripted) -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}]
    parts.append({"type": "refusal", "refusal": "no"})
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert await prompt_of(door, serving, source, {"role": "user", "content": parts}) == "a\nb\nno"


async def test_parts_for_a_template_that_reads_them(door: Door, serving: Scripted) -> None:
    source = (
        "{% for m in messages %}{% for p in m.content %}<{{ p.type }} {{ p.text }}>{% endfor %}{% endfor %}"
    )
    parts = [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": ""},
    ]
    shown = await prompt_of(door, serving, source, {"role": "user", "content": parts}, USER)
    assert shown == "<text a><text ><text hi>"


async def test_an_assistant_that_only_thought_needs_no_content(door: Door, serving: Scripted) -> None:
    thought = {"role": "assistant", "reasoning_content": "so"}
    assert await prompt_of(door, serving, "{{ messages[0].thinking }}", thought) == "so"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "content": None}, "messages[1].content"),
        ({"role": "assistant", "tool_calls": []}, "messages[1].content"),
        ({"role": "user", "reasoning": "so"}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "refusal", "text": "x"}]}, "messages[1].content[0].refusal"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[1].content[0].type"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[1].content[0].type"),
        ({"role": "assistant", "content": "x", "tool_calls": "y"}, "messages[1].tool_calls"),
        ({"role": "user", "content": "x"} | {f"field{i}": i for i in range(63)}, "messages[1]"),
        ("x", "messages[1]"),
    ],
)
async def test_a_message_that_is_refused_is_named(
    door: Door, serving: Scripted, chat_body: dict[str, Any], message: Any, param: str
) -> None:
    for path in (CHAT, "/tokenize"):
        status, answer, _ = await door.post(path, chat_body | {"messages": [USER, message]})
        assert (status, answer["error"]["param"]) == (400, param)
    assert serving.requests == []
