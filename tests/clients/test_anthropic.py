"""The official Anthropic client."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

pytestmark = pytest.mark.clients
MODEL = "claude-demo"  # an alias
USER: Any = [{"role": "user", "content": "Name three rivers."}]
TOOL: Any = {
    "name": "weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
def client(url: str, key: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=240) as found:
        yield found


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2-135m-instruct"]


def test_messages_whole_and_streamed_say_the_same(client: Any) -> None:
    whole = client.messages.create(model=MODEL, messages=USER, system="Be brief.", max_tokens=12)
    assert (whole.type, whole.role, whole.stop_reason) == ("message", "assistant", "max_tokens")
    assert whole.usage.output_tokens == 12
    with client.messages.stream(model=MODEL, messages=USER, system="Be brief.", max_tokens=12) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert said == whole.content[0].text == final.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 12)


def test_tools_and_their_results(client: Any) -> None:
    turns: Any = [
        {"role": "user", "content": "What is the weather in Rome?"},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}
        ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}]},
    ]  # fmt: skip
    answer = client.messages.create(model=MODEL, messages=turns, tools=[TOOL], max_tokens=12)
    assert answer.usage.output_tokens == 12 or answer.stop_reason == "end_turn"
    plain = client.messages.count_tokens(model=MODEL, messages=turns)
    counted = client.messages.count_tokens(model=MODEL, messages=turns, tools=[TOOL])
    usage = answer.usage
    assert plain.input_tokens < counted.input_tokens
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_a_call_that_must_be(client: Any) -> None:
    choice: Any = {"type": "any"}
    answer = client.messages.create(
        model=MODEL, messages=USER, tools=[TOOL], tool_choice=choice, max_tokens=40
    )
    (block,) = answer.content
    assert (block.type, block.name) == ("tool_use", "weather")


def test_going_on_with_the_last_turn(client: Any) -> None:
    turns = [*USER, {"role": "assistant", "content": "1. The Nile\n2."}]
    answer = client.messages.create(model=MODEL, messages=turns, max_tokens=24, stop_sequences=["3."])
    assert answer.content[0].text.strip()
    stopped = answer.stop_reason == "stop_sequence"
    assert answer.stop_sequence == ("3." if stopped else None)
    assert stopped or answer.usage.output_tokens == 24


def test_errors(client: Any, url: str) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="unknown", messages=USER, max_tokens=1)
    with pytest.raises(anthropic.BadRequestError) as wrong:
        client.messages.create(model=MODEL, messages=USER, max_tokens=1, extra_body={"temperature": 9})
    assert wrong.value.body["error"]["type"] == "invalid_request_error"
    with (
        anthropic.Anthropic(base_url=url, api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.models.list()
