"""Whatever a client sends gets an answer or an error object that blames it: never a 500."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.http_door import Door, Scripted

from muxd.api.refusals import HARMLESS
from muxd.api.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

pytestmark = pytest.mark.anyio
relaxed = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

SCHEMAS: dict[str, tuple[type[msgspec.Struct], dict[str, Any]]] = {
    "/v1/chat/completions": (
        ChatRequest,
        {"model": "org/chat-model", "messages": [{"role": "user", "content": "hi"}]},
    ),
    "/v1/completions": (CompletionRequest, {"model": "base", "prompt": "one two"}),
    "/tokenize": (TokenizeRequest, {"model": "base", "prompt": "one two"}),
    "/detokenize": (DetokenizeRequest, {"model": "base", "tokens": [1, 2, 3]}),
}
numbers = st.integers(-(2**70), 2**70) | st.integers(-2, 20) | st.floats(allow_nan=False)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8) | st.just("one")
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool"]) | values},
        optional={
            "content": values | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": values})),
            "name": values,
            "tool_calls": values,
        },
    ),
    max_size=3,
)
endpoints = st.sampled_from(sorted(SCHEMAS))


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    path = draw(endpoints)
    schema, valid = SCHEMAS[path]
    names = [*schema.__struct_fields__, "unheard_of"]
    changes = draw(st.dictionaries(st.sampled_from(names), values | messages, max_size=4))
    return path, valid | changes


@st.composite
def damaged_bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid body with some bytes overwritten or cut off."""
    path = draw(endpoints)
    raw = bytearray(json.dumps(SCHEMAS[path][1]).encode())
    for _ in range(draw(st.integers(1, 3))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return path, bytes(raw[: draw(st.integers(1, len(raw)))])


async def blames_the_client(door: Door, path: str, data: bytes) -> int:
    async with door.http.post(path, data=data, headers={"Content-Type": "application/json"}) as answer:
        raw = await answer.read()
        assert answer.status in (200, 400, 404)
        if answer.status != 200:
            assert set(json.loads(raw)["error"]) == {"message", "type", "param", "code"}
        return answer.status


@relaxed
@given(bodies())
async def test_changed_bodies(door: Door, serving: Scripted, body: tuple[str, dict[str, Any]]) -> None:
    path, content = body
    await blames_the_client(door, path, json.dumps(content).encode())
    assert serving.closed == []


@relaxed
@given(endpoints, st.binary(max_size=200))
async def test_random_bytes(door: Door, path: str, data: bytes) -> None:
    await blames_the_client(door, path, data)


@relaxed
@given(damaged_bodies())
async def test_damaged_bodies(door: Door, body: tuple[str, bytes]) -> None:
    await blames_the_client(door, *body)


def test_every_refused_field_is_declared() -> None:
    """A field that no struct declares would be ignored silently, whatever the table says."""
    declared = {*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__}
    assert set(HARMLESS) <= declared
