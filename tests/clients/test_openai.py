"""The official OpenAI client: chat, completions, responses, tools, errors."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

pytestmark = pytest.mark.clients
MODEL = "smollm2-135m-instruct"
USER: Any = [{"role": "user", "content": "Name three rivers."}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}


@pytest.fixture
def client(url: str, key: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=240) as found:
        yield found


@pytest.fixture
async def later(url: str, key: str) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=240) as found:
        yield found


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "claude-demo"]
    assert client.models.retrieve(MODEL).owned_by == "muxd"


def test_chat_whole_and_streamed_say_the_same(client: Any) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=12)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12
    chunks = client.chat.completions.create(
        model=MODEL, messages=USER, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    said, usage = "", None
    for chunk in chunks:
        said += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert said == whole.choices[0].message.content
    assert usage is not None
    assert usage.completion_tokens == 12


def test_completions(client: Any) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=4, echo=True
    )
    assert answer.choices[0].text.startswith("The capital of France is")
    assert "Paris" in answer.choices[0].text


def test_responses_whole_and_streamed_say_the_same(client: Any) -> None:
    whole = client.responses.create(
        model=MODEL, instructions="Be brief.", input="Name three rivers.", max_output_tokens=12
    )
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    kinds = []
    with client.responses.stream(
        model=MODEL, instructions="Be brief.", input="Name three rivers.", max_output_tokens=12
    ) as stream:
        for event in stream:
            kinds.append(event.type)
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.incomplete"
    assert "response.output_text.delta" in kinds


def test_a_call_and_what_comes_of_it(client: Any) -> None:
    """The history of a call is what models of this size need to make another."""
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
    }
    turns: Any = [
        {"role": "user", "content": "What is the weather in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny, 25 degrees"},
    ]
    asked: Any = {"model": MODEL, "messages": turns, "max_tokens": 2}
    plain = client.chat.completions.create(**asked)
    answer = client.chat.completions.create(**asked, tools=[TOOL])
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens, "the model is told of the tool"
    assert answer.usage.completion_tokens == 2 or answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_be(client: Any, choice: Any) -> None:
    """A small model that would not call by itself is held to the form of a call."""
    turns: Any = [{"role": "user", "content": "What is the weather in Rome?"}]
    answer = client.chat.completions.create(
        model=MODEL,
        messages=turns,
        tools=[TOOL],
        tool_choice=choice,
        parallel_tool_calls=False,
        max_tokens=60,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert answer.choices[0].finish_reason in ("tool_calls", "length")
    if answer.choices[0].finish_reason == "tool_calls":
        assert isinstance(json.loads(call.function.arguments)["city"], str)


class Place(BaseModel):
    kind: Literal["river", "city", "country"]
    long: bool


def test_an_answer_that_is_parsed(client: Any) -> None:
    asked: Any = [{"role": "user", "content": "The Nile is a river."}]
    chat = client.chat.completions.parse(model=MODEL, messages=asked, response_format=Place, max_tokens=200)
    assert isinstance(chat.choices[0].message.parsed, Place)
    response = client.responses.parse(model=MODEL, input=asked, text_format=Place, max_output_tokens=200)
    assert isinstance(response.output_parsed, Place)


def test_embeddings(client: Any) -> None:
    """The client asks for base64 by itself."""
    packed = client.embeddings.create(model=MODEL, input=["a river", "a city"])
    plain = client.embeddings.create(model=MODEL, input="a city", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(packed.data[1].embedding, abs=1e-5)
    assert packed.usage.prompt_tokens > plain.usage.prompt_tokens


def test_errors(client: Any, url: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="unknown", messages=USER)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=USER, temperature=9)
    assert wrong.value.param == "temperature"
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_a_refusal_is_tried_again(url: str, narrow_key: str) -> None:
    """By the client itself, as the answer asks for."""
    refused: list[str] = []

    def hear(response: Any) -> None:
        if response.status_code == 429:
            refused.append(response.headers["retry-after"])
            stream.close()

    known: Any = {"base_url": f"{url}/v1", "api_key": narrow_key, "timeout": 240}
    http = openai.DefaultHttpxClient(event_hooks={"response": [hear]})
    with openai.OpenAI(**known) as first, openai.OpenAI(**known, max_retries=8, http_client=http) as second:
        stream = first.chat.completions.create(model=MODEL, messages=USER, stream=True, max_tokens=4000)
        next(iter(stream))
        answer: Any = second.chat.completions.create(model=MODEL, messages=USER, max_tokens=1)
    assert answer.usage.completion_tokens == 1
    assert refused


@pytest.mark.anyio
async def test_a_stream_that_is_left(later: Any) -> None:
    stream = await later.chat.completions.create(model=MODEL, messages=USER, stream=True)
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    await stream.close()
    answer = await later.chat.completions.create(model=MODEL, messages=USER, max_tokens=1)
    assert answer.usage.completion_tokens == 1
