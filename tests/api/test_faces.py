"""The same under every path that a client may have been given."""

from typing import Any

import pytest
from support.http_door import Door

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("base", ["/v1", ""])
@pytest.mark.parametrize("end", ["", "/"])
async def test_without_the_prefix_and_with_a_slash(
    door: Door, chat_body: dict[str, Any], base: str, end: str
) -> None:
    status, answer, _ = await door.post(f"{base}/chat/completions{end}", chat_body)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "hello world")
    status, answer, _ = await door.post(f"{base}/completions{end}", {"model": "base", "prompt": "x"})
    assert (status, answer["choices"][0]["text"]) == (200, "hello world")
    listed = await (await door.http.get(f"{base}/models{end}")).json()
    assert [model["id"] for model in listed["data"]] == ["org/chat-model", "base"]
    assert (await (await door.http.get(f"{base}/models/org/chat-model")).json())["id"] == "org/chat-model"
    text = await (await door.http.get("/metrics")).text()
    assert 'route="/v1/chat/completions",status="200"} 1.0' in text
