"""langchain-openai, over both of OpenAI's APIs."""

from typing import Any

import langchain_openai
import pytest

pytestmark = pytest.mark.clients
MODEL = "smollm2-135m-instruct"


def chat(url: str, key: str, **options: Any) -> Any:
    return langchain_openai.ChatOpenAI(
        base_url=f"{url}/v1", api_key=key, model=MODEL, max_tokens=12, max_retries=0, timeout=240, **options
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
