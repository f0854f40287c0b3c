"""The official Ollama client."""

from collections.abc import Iterator
from typing import Any

import ollama
import pytest

pytestmark = pytest.mark.clients
MODEL = "smollm2-135m-instruct"
USER: Any = [{"role": "user", "content": "Name three rivers."}]
FEW = {"num_predict": 12}


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name
    """
    return f"{city}: sunny"


@pytest.fixture
def client(url: str, key: str) -> Iterator[Any]:
    found = ollama.Client(host=url, headers={"Authorization": f"Bearer {key}"}, timeout=240)
    yield found
    found._client.close()


def test_models(client: Any) -> None:
    assert [model.model for model in client.list().models] == [MODEL]
    assert [model.model for model in client.ps().models] == [MODEL]
    shown = client.show(f"{MODEL}:latest")
    assert "completion" in shown.capabilities
    assert shown.details.family == "llama"


def test_chat_whole_and_streamed_say_the_same(client: Any) -> None:
    whole = client.chat(MODEL, messages=USER, options=FEW)
    assert (whole.done, whole.done_reason, whole.eval_count) == (True, "length", 12)
    parts = list(client.chat(MODEL, messages=USER, options=FEW, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert [part.done for part in parts].index(True) == len(parts) - 1


def test_generate(client: Any) -> None:
    raw = client.generate(MODEL, prompt="The capital of France is", raw=True, options={"num_predict": 4})
    assert "Paris" in raw.response
    parts = list(client.generate(MODEL, prompt="Name three rivers.", options=FEW, stream=True))
    assert "".join(part.response for part in parts)
    assert client.generate(MODEL).done_reason == "load"


def test_tools(client: Any) -> None:
    """Ollama's API cannot demand a call: that the model is told of them is what can be seen."""
    plain = client.chat(MODEL, messages=USER, options=FEW)
    told = client.chat(MODEL, messages=USER, tools=[weather], options=FEW)
    assert told.prompt_eval_count > plain.prompt_eval_count


def test_embeddings(client: Any) -> None:
    answer = client.embed(MODEL, input=["a river", "a city"])
    assert [len(one) for one in answer.embeddings] == [576, 576]
    assert client.embeddings(MODEL, prompt="a city").embedding == pytest.approx(
        answer.embeddings[1], abs=1e-5
    )


def test_errors(client: Any) -> None:
    with pytest.raises(ollama.ResponseError, match="unknown") as missing:
        client.chat("unknown", messages=USER)
    assert missing.value.status_code == 404
