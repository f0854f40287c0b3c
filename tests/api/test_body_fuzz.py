"""Whatever a client sends gets an answer or an error object that blames it: never a 500.

A daemon with real models gets such bodies in tests/e2e/test_bodies_at_a_daemon.py.
"""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bodies import SCHEMAS, Bodies, Body
from support.examples import examples
from support.http_door import Door, Scripted

from muxd.api.refusals import HARMLESS
from muxd.api.schemas import ChatRequest, CompletionRequest

pytestmark = pytest.mark.anyio
relaxed = settings(max_examples=examples(120), suppress_health_check=[HealthCheck.function_scoped_fixture])
# Made before the test's coroutine begins: what hypothesis raises to end an example would end anyio's runner.
randoms = st.randoms(use_true_random=False)
BODIES = Bodies("org/chat-model", "base", 258)  # the tokenizer has a few more


async def blames_the_client(door: Door, body: Body) -> int:
    async with door.http.post(
        body.path, data=body.data, headers={"Content-Type": "application/json"}
    ) as answer:
        raw = await answer.read()
        assert answer.status in (200, 400, 404)
        if answer.status != 200:
            error = json.loads(raw)["error"]
            if body.path.startswith("/api/"):
                assert isinstance(error, str)
            else:
                more = set() if body.path.startswith("/v1/messages") else {"param", "code"}
                assert set(error) == {"message", "type", *more}
        return answer.status


@relaxed
@given(randoms.map(BODIES.at_the_ends))
async def test_fields_at_their_ends(door: Door, serving: Scripted, body: Body) -> None:
    await blames_the_client(door, body)
    assert all(serving.closed)  # none but for a stop string


@relaxed
@given(randoms.map(BODIES.of_anything))
async def test_fields_of_anything(door: Door, serving: Scripted, body: Body) -> None:
    await blames_the_client(door, body)
    assert all(serving.closed)  # none but for a stop string


@relaxed
@given(st.sampled_from(sorted(SCHEMAS)), st.binary(max_size=200))
async def test_random_bytes(door: Door, path: str, data: bytes) -> None:
    await blames_the_client(door, Body(path, data))


@relaxed
@given(randoms.map(BODIES.damaged))
async def test_damaged_bodies(door: Door, body: Body) -> None:
    await blames_the_client(door, body)


def test_every_refused_field_is_declared() -> None:
    """A field that no struct declares would be ignored silently, whatever the table says."""
    declared = {*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__}
    assert set(HARMLESS) <= declared
