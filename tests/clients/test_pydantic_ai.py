"""pydantic-ai: answers that have a form, by each of its three ways."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

pytestmark = [pytest.mark.clients, pytest.mark.anyio]
MODEL = "smollm2-135m-instruct"
ASKED = "The Nile is a river."


class Place(BaseModel):
    kind: Literal["river", "city", "country"]
    long: bool


def agent(url: str, key: str, kind: Any, output: Any) -> Any:
    provider = OpenAIProvider(base_url=f"{url}/v1", api_key=key)
    model = kind(MODEL, provider=provider, settings={"max_tokens": 64})
    return Agent(model, output_type=output, retries=0)


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
async def test_a_text(url: str, key: str, kind: Any) -> None:
    asked = agent(url, key, kind, str)
    whole = await asked.run("Name three rivers.", model_settings={"max_tokens": 12})
    assert whole.output
    assert whole.usage.output_tokens == 12
    async with asked.run_stream("Name three rivers.", model_settings={"max_tokens": 12}) as stream:
        assert await stream.get_output() == whole.output


@pytest.mark.parametrize("way", [ToolOutput, NativeOutput])
@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
async def test_a_form(url: str, key: str, kind: Any, way: Any) -> None:
    asked = agent(url, key, kind, way(Place))
    whole = (await asked.run(ASKED)).output
    assert isinstance(whole, Place)
    async with asked.run_stream(ASKED) as stream:
        assert await stream.get_output() == whole
