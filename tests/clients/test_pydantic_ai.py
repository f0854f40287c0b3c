"""pydantic-ai: answers that have a form, by each of its three ways."""

from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
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


@pytest.fixture
async def provider(url: str, key: str) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=240) as client:
        yield OpenAIProvider(openai_client=client)


def agent(provider: Any, kind: Any, output: Any) -> Any:
    # Room for the blanks that a small model writes.
    model = kind(MODEL, provider=provider, settings={"max_tokens": 200})
    return Agent(model, output_type=output, retries=0)


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
async def test_a_text(provider: Any, kind: Any) -> None:
    asked = agent(provider, kind, str)
    whole = await asked.run("Name three rivers.", model_settings={"max_tokens": 12})
    assert whole.output
    assert whole.usage.output_tokens == 12
    async with asked.run_stream("Name three rivers.", model_settings={"max_tokens": 12}) as stream:
        assert await stream.get_output() == whole.output


@pytest.mark.parametrize("way", [ToolOutput, NativeOutput])
@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
async def test_a_form(provider: Any, kind: Any, way: Any) -> None:
    asked = agent(provider, kind, way(Place))
    whole = (await asked.run(ASKED)).output
    assert isinstance(whole, Place)
    async with asked.run_stream(ASKED) as stream:
        assert await stream.get_output() == whole
