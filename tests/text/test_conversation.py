"""Messages on their way into a template, and what a template's tree tells about the messages it takes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.text.conversation import turn_of
from muxd.text.sandbox import TemplateEnvironment
from muxd.text.traits import Traits, traits_of

numbers = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def arguments_of(arguments: Any) -> Any:
    call: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    turn = turn_of({"role": "assistant", "tool_calls": [call]}, Traits())
    assert call["function"]["arguments"] == arguments
    assert turn["tool_calls"][0] | {"function": call["function"]} == call
    return turn["tool_calls"][0]["function"]["arguments"]


@given(st.dictionaries(st.text(max_size=5), values, max_size=4))
def test_the_text_of_an_object_becomes_that_object(arguments: dict[str, Any]) -> None:
    assert arguments_of(json.dumps(arguments)) == arguments
    assert arguments_of(arguments) == arguments


@pytest.mark.parametrize("text", ["{", "[1]", "1", "none", '{"a": NaN}', "[" * 9999, r'{"a": "\ud800"}'])
def test_the_text_of_no_object_stays_a_text(text: str) -> None:
    assert arguments_of(text) == text


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_text_is_no_arguments(nothing: str | None) -> None:
    assert arguments_of(nothing) == {}


@given(st.lists(values, max_size=3))
def test_calls_of_any_form_go_through(calls: list[Any]) -> None:
    kept = turn_of({"role": "assistant", "content": "x", "tool_calls": calls}, Traits())["tool_calls"]
    assert kept == calls


@given(st.dictionaries(st.text(min_size=1, max_size=9), values, max_size=5))
def test_every_field_reaches_the_template_but_those_that_hold_null(more: dict[str, Any]) -> None:
    message = more | {"role": "user", "content": "hi"}
    message.pop("tool_calls", None)
    turn = turn_of(message, Traits(developer=True))
    assert (
        message.items() <= (turn | {name: None for name, value in message.items() if value is None}).items()
    )
    assert None not in turn.values()


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_there_under_the_names_that_templates_use(name: str) -> None:
    turn = turn_of({"role": "assistant", "content": "x", name: "so"}, Traits())
    assert (turn["reasoning_content"], turn["thinking"], turn[name]) == ("so", "so", "so")


def test_content_takes_the_form_that_the_template_reads() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert turn_of({"role": "user", "content": parts}, Traits())["content"] == "a\nb"
    assert turn_of({"role": "user", "content": parts}, Traits(parts=True))["content"] == parts
    assert turn_of({"role": "user", "content": "a"}, Traits(parts=True, texts=False))["content"] == parts[:1]
    assert turn_of(call, Traits())["content"] == ""
    assert turn_of(call, Traits(null=True))["content"] is None
    assert turn_of(call | {"content": "x"}, Traits(null=True))["content"] == "x"


LOOK = "{% for part in X %}{{ part.type }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "traits"),
    [
        ("{{ messages[0].content }}", Traits()),
        ("{% for m in messages %}{% for c in m.content %}{{ c.type }}{% endfor %}{% endfor %}",
         Traits(parts=True, texts=False)),
        (LOOK.replace("X", "m['content'] | list"), Traits(parts=True, texts=False)),
        (LOOK.replace("X", "m.get('content') or []"), Traits(parts=True, texts=False)),
        (LOOK.replace("X", "(m.content if m else [])"), Traits(parts=True, texts=False)),
        (LOOK.replace("part.type", "part['text']").replace("X", "m.content"),
         Traits(parts=True, texts=False)),
        (LOOK.replace("part.type", "part.get('type')").replace("X", "m.content"),
         Traits(parts=True, texts=False)),
        ("{% if m.content is not string %}" + LOOK.replace("X", "m.content") + "{% endif %}",
         Traits(parts=True)),
        ("{% set c = m.content %}{% set d = c %}" + LOOK.replace("X", "d"), Traits(parts=True, texts=False)),
        ("{% macro f(n, x) %}{% if x is string %}{{ x }}{% endif %}" + LOOK.replace("X", "x")
         + "{% endmacro %}{{ f(1, m.content) }}", Traits(parts=True)),
        (LOOK.replace("X", "m.tools"), Traits()),
        ("{% for c in m.content %}{{ c }}{% endfor %}", Traits()),
        ("{% if m.content is none %}x{% endif %}", Traits(null=True)),
        ("{% if m.content is not none %}x{% endif %}", Traits()),
        ("{% if m.role in ['developer'] %}x{% endif %}", Traits(developer=True)),
    ],
)  # fmt: skip
def test_a_template_tells_what_it_takes(source: str, traits: Traits) -> None:
    assert traits_of(TemplateEnvironment().parse(source)) == traits
