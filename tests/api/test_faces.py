"""The same under every path that a client may have been given."""

import json
import re
from typing import Any

import pytest
from support.http_door import Door, Scripted

from muxd.api.routes import ROUTES

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


async def test_what_is_loaded_and_its_end(door: Door, serving: Scripted) -> None:
    shown = await (await door.http.get("/running")).json()
    assert [(one["model"], one["state"]) for one in shown["running"]] == [
        ("org/chat-model", "ready"),
        ("base", "ready"),
    ]
    status, answer, _ = await door.post("/api/models/unload/org/chat-model", {})
    assert (status, answer["unloaded"]) == (200, ["org/chat-model"])
    assert (await (await door.http.get("/unload")).json())["unloaded"] == ["base"]
    assert (await (await door.http.get("/running")).json())["running"] == []
    assert (await door.post("/api/models/unload/nobody", {}))[0] == 404


async def test_the_document_of_the_api(door: Door) -> None:
    document = await (await door.http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    shown = {(method.upper(), path) for path, ways in document["paths"].items() for method in ways}
    assert shown == {(route.method, re.sub(":[^}]*}", "}", route.path)) for route in ROUTES}
    names = document["components"]["schemas"]
    refs = set(re.findall(r"#/components/schemas/([\\w.]+)", json.dumps(document)))
    assert refs <= set(names)
    chat = names["ChatRequest"]
    assert "messages" in chat["required"]
    assert chat["properties"]["top_logprobs"]["anyOf"][0]["maximum"] == 20
    ids = [way["operationId"] for ways in document["paths"].values() for way in ways.values()]
    assert len(set(ids)) == len(ids)
