"""What the operator says for requests that do not, and what becomes of fields that nobody knows."""

from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from support.http_door import Door, Scripted

from muxd.api.app import make_app, make_runner
from muxd.api.metrics import HttpMetrics
from muxd.text.template import ChatTemplate

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{{ mood }}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def teach(serving: Scripted, **changes: Any) -> None:
    template = ChatTemplate(TEMPLATE, {}, "test")
    serving.by_name["base"] = replace(serving.by_name["base"], template=template, **changes)


async def prompt_of(door: Door, serving: Scripted, *messages: dict[str, Any], **fields: Any) -> str:
    body = {"model": "base", "messages": messages or (USER,), **fields}
    status, answer, _ = await door.post(CHAT, body)
    assert status == 200, answer
    return serving.tokenizer.decode(serving.requests[-1].prompt)


async def test_a_system_prompt_where_there_is_none(door: Door, serving: Scripted) -> None:
    teach(serving, system_prompt="Be kind.")
    assert await prompt_of(door, serving) == "[system] Be kind.\n[user] hi\n[assistant]"
    own = {"role": "developer", "content": "Be brief."}
    assert await prompt_of(door, serving, own, USER) == "[system] Be brief.\n[user] hi\n[assistant]"
    _, tokens, _ = await door.post("/tokenize", {"model": "base", "messages": [USER]})
    assert serving.tokenizer.decode(tokens["tokens"]).startswith("[system] Be kind.")


async def test_template_variables(door: Door, serving: Scripted) -> None:
    teach(serving, template_kwargs={"mood": "calm"})
    assert await prompt_of(door, serving) == "[user] hi\ncalm[assistant]"
    assert (
        await prompt_of(door, serving, chat_template_kwargs={"mood": "wild"}) == "[user] hi\nwild[assistant]"
    )


async def test_sampling(door: Door, serving: Scripted) -> None:
    defaults = {"temperature": 0.25, "presence_penalty": 0.5, "top_k": 7}
    teach(serving, default_sampling=defaults)
    await prompt_of(door, serving, temperature=1.5)
    sampling = serving.requests[-1].sampling
    assert (sampling.temperature, sampling.presence_penalty, sampling.top_k) == (1.5, 0.5, 7)


async def test_another_name(door: Door, serving: Scripted) -> None:
    teach(serving, aliases=["gpt-5", "org/other"])
    for name in ("gpt-5", "org/other:latest"):
        status, answer, _ = await door.post(CHAT, {"model": name, "messages": [USER]})
        assert (status, answer["model"]) == (200, "base")
    long = {"model": "gpt-5", "prompt": "x", "pad": "y" * (70 << 10)}
    assert (await door.post("/v1/completions", long))[0] == 200
    listed = await (await door.http.get("/v1/models")).json()
    assert [(one["id"], one["root"]) for one in listed["data"]][1:] == [
        ("base", "base"),
        ("gpt-5", "base"),
        ("org/other", "base"),
    ]


async def test_going_on_with_the_last_message(door: Door, serving: Scripted) -> None:
    teach(serving)
    last = {"role": "assistant", "content": "The answer is "}
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    assert await prompt_of(door, serving, USER, last, **fields) == "[user] hi\n[assistant] The answer is "
    parts = {"role": "assistant", "content": [{"type": "text", "text": "So"}]}
    assert (
        await prompt_of(door, serving, USER, parts, continue_final_message=True)
        == "[user] hi\n[assistant] So"
    )
    for messages, more in (([USER], {}), ([USER, last | {"content": ""}], {}), ([USER, last], {"add": True})):
        body = {"model": "base", "messages": messages, "continue_final_message": True}
        status, answer, _ = await door.post(CHAT, body | ({"add_generation_prompt": True} if more else {}))
        assert (status, answer["error"]["param"]) == (400, "continue_final_message")


async def test_fields_that_nobody_knows(
    door: Door, serving: Scripted, chat_body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "muxd.api")
    more = {"temprature": 1, "user": "me", "metadata": {}, "min_p": None, "nothing": None, "a b\n": 1}
    for _ in range(2):
        status, _, headers = await door.post(CHAT, chat_body | more)
        assert (status, headers["x-muxd-ignored"]) == (200, "temprature")
    assert len([record for record in caplog.records if "temprature" in record.getMessage()]) == 1
    _, _, headers = await door.post(CHAT, chat_body)
    assert "x-muxd-ignored" not in headers
    options = {"options": {"num_ctx": 9, "temperature": 0}, "stream": False, "keep_alive": -1}
    _, _, headers = await door.post("/api/chat", chat_body | options)
    assert headers["x-muxd-ignored"] == "options.num_ctx"
    for path, name, value in (
        ("/tokenize", "prompt", "x"),
        ("/detokenize", "tokens", [1]),
        ("/api/show", "name", "x"),
    ):
        status, _, headers = await door.post(path, {"model": "base", "dimension": 8, name: value})
        assert (status, headers["x-muxd-ignored"]) == (200, "dimension")


async def test_a_strict_door(serving: Scripted, chat_body: dict[str, Any]) -> None:
    metrics = HttpMetrics(CollectorRegistry())
    app = make_app(serving, max_body=1 << 20, metrics=metrics, texts=serving, strict=True)
    runner = make_runner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}{CHAT}"
    async with aiohttp.ClientSession() as http:
        async with http.post(url, json=chat_body | {"temprature": 1}) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["param"]) == (400, "temprature")
            assert "did you mean 'temperature'" in error["message"]
        for field, near in (("tool", "tools"), ("response_fromat", "response_format")):
            async with http.post(url, json=chat_body | {field: 1}) as answer:
                assert f"did you mean {near!r}" in (await answer.json())["error"]["message"]
        async with http.post(url, json=chat_body | {"user": "me", "store": True}) as answer:
            assert answer.status == 200
    await runner.cleanup()
    assert len(serving.requests) == 1


@pytest.mark.parametrize(
    ("change", "message", "code"),
    [
        ({"messages": []}, "messages must not be empty", "invalid_value"),
        ({"messages": [{"role": "human", "content": "x"}]}, "messages[0].role must be", "unsupported_value"),
        ({"messages": [{"role": "human", "content": "x"}]}, "'assistant'", "unsupported_value"),
        ({"messages": [{"role": "user", "content": 3}]},
         "messages[0].content must be a text or a list, not a whole number", "invalid_type"),
        ({"messages": None}, "messages must be a list, not null", "invalid_type"),
        ({"temperature": 3}, "temperature must be at most 2", "invalid_value"),
        ({"top_p": 0}, "top_p must be above 0", "invalid_value"),
        ({"stop": ["x"] * 65}, "stop must have at most 64 items", "invalid_value"),
        ({"stream": "yes"}, "stream must be true or false, not a text", "invalid_type"),
        ({"tools": "x"}, "tools must be a list, not a text", "invalid_type"),
    ],
)  # fmt: skip
async def test_plain_words(
    door: Door, chat_body: dict[str, Any], change: dict[str, Any], message: str, code: str
) -> None:
    status, answer, _ = await door.post(CHAT, chat_body | change)
    assert (status, answer["error"]["code"]) == (400, code)
    assert message in answer["error"]["message"]
    assert "`" not in answer["error"]["message"]


async def test_plain_words_about_the_whole_body(door: Door, chat_body: dict[str, Any]) -> None:
    async def post(data: bytes) -> str:
        async with door.http.post(CHAT, data=data, headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 400
            return str((await answer.json())["error"]["message"])

    assert await post(b"[1]") == "the request body must be an object, not a list"
    assert await post(b'{"model": "\xff"}') == "the request body is not valid JSON: it is not UTF-8"
    assert await post(b'{"model": "base"}') == "messages is required"
    assert await post(b"\xef\xbb\xbf" + b'{"model": "base"}') == "messages is required"
