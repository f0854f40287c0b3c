"""langchain-openai, over both of OpenAI's APIs."""

from typing import Any, Literal

import langchain_openai
import pytest
from pydantic import BaseModel

pytestmark = pytest.mark.clients
MODEL = "smollm2-135m-instruct"


def chat(url: str, key: str, **options: Any) -> Any:
    return langchain_openai.ChatOpenAI(
        base_url=f"{url}/v1",
        api_key=key,
        model=MODEL,
        max_retries=0,
        timeout=240,
        **{"max_tokens": 12, **options},
    )


@pytest.mark.parametrize("responses", [False, True])
def test_invoke_and_stream(url: str, key: str, responses: bool) -> None:
    model = chat(url, key, use_responses_api=responses)
    whole = model.invoke("Name three rivers.")
    assert whole.text
    assert whole.usage_metadata["output_tokens"] == 12
    assert "".join(chunk.text for chunk in model.stream("Name three rivers.")) == whole.text


def test_tools(url: str, key: str) -> None:
    def weather(city: str) -> str:
        """The weather of a city."""
        return f"{city}: sunny"

    bound = chat(url, key).bind_tools([weather], tool_choice="weather", parallel_tool_calls=False)
    answer = bound.invoke("What is the weather in Rome?", max_tokens=40)
    calls = [*answer.tool_calls, *answer.invalid_tool_calls]  # one that was cut short is of the second kind
    assert [call["name"] for call in calls] == ["weather"]


class Place(BaseModel):
    """What a text is about."""

    kind: Literal["river", "city", "country"]
    long: bool


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_a_form(url: str, key: str, method: str) -> None:
    model = chat(url, key, max_tokens=400).with_structured_output(Place, method=method, include_raw=True)
    found = model.invoke("The Nile is a river. Answer in JSON.")
    assert isinstance(found["parsed"], Place)


def test_embeddings(url: str, key: str) -> None:
    model = langchain_openai.OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key=key, model=MODEL, check_embedding_ctx_length=False, max_retries=0
    )
    texts = model.embed_documents(["a river", "a city"])
    assert model.embed_query("a city") == pytest.approx(texts[1], abs=1e-5)
    assert texts[0] != pytest.approx(texts[1], abs=1e-2)
