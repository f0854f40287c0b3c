"""litellm, which many programs ask through: as OpenAI's, as vLLM's, and as Anthropic's."""

import os
from typing import Any

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch prices

import litellm

# Of what it warns nothing is about a server.
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]
MODEL = "smollm2-135m-instruct"
USER: Any = [{"role": "user", "content": "Name three rivers."}]
PARAMETERS = {"type": "object", "properties": {"long": {"type": "boolean"}}, "required": ["long"]}
TOOL: Any = {"type": "function", "function": {"name": "river", "parameters": PARAMETERS}}
WAYS = ["openai", "hosted_vllm"]


def asked(url: str, key: str, way: str) -> dict[str, Any]:
    base = url if way == "anthropic" else f"{url}/v1"
    return {"model": f"{way}/{MODEL}", "api_base": base, "api_key": key, "timeout": 240, "max_retries": 0}


@pytest.mark.parametrize("way", [*WAYS, "anthropic"])
def test_chat_whole_and_streamed_say_the_same(url: str, key: str, way: str) -> None:
    body = asked(url, key, way) | {"messages": USER, "max_tokens": 12}
    whole = litellm.completion(**body)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12
    said = ""
    for chunk in litellm.completion(**body, stream=True, stream_options={"include_usage": True}):
        said += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert said == whole.choices[0].message.content


@pytest.mark.parametrize("way", [*WAYS, "anthropic"])
def test_a_call_that_must_be(url: str, key: str, way: str) -> None:
    body = asked(url, key, way) | {"messages": USER, "tools": [TOOL], "max_tokens": 64}
    answer = litellm.completion(**body, tool_choice="required")
    names = {call.function.name for call in answer.choices[0].message.tool_calls}
    assert names == {"river"}


def test_responses(url: str, key: str) -> None:
    answer = litellm.responses(
        **asked(url, key, "openai"), input="Name three rivers.", max_output_tokens=16, store=False
    )
    assert answer.usage.output_tokens == 16  # the least that it asks for


@pytest.mark.parametrize("way", WAYS)
def test_embeddings(url: str, key: str, way: str) -> None:
    answer = litellm.embedding(**asked(url, key, way), input=["a river", "a city"])
    assert [len(one["embedding"]) for one in answer.data] == [576, 576]


def test_reranking(url: str, key: str) -> None:
    answer = litellm.rerank(
        **asked(url, key, "hosted_vllm"), query="a river", documents=["a city", "a river"], top_n=1
    )
    assert [one["index"] for one in answer.results] == [1]


@pytest.mark.parametrize("way", [*WAYS, "anthropic"])
def test_errors(url: str, key: str, way: str) -> None:
    body = asked(url, key, way)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**body | {"model": f"{way}/unknown"}, messages=USER, max_tokens=1)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**body, messages=[{"role": "user", "content": "river " * 9000}], max_tokens=1)
