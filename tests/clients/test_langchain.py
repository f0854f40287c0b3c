"""langchain-openai, over both of OpenAI's APIs."""

from typing import Any

import pytest

langchain_openai = pytest.importorskip("langchain_openai")

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

    answer = chat(url, key).bind_tools([weather]).invoke("What is the weather in Rome?")
    assert answer.content or answer.tool_calls
