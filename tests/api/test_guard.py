"""Who is let in, and what they may do."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from support.http_door import Connect, Door, Scripted

from muxd.api.app import make_app, make_runner
from muxd.api.keys import Keys, digest, new_key, table
from muxd.api.metrics import HttpMetrics
from muxd.errors import ConfigError

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
BODY = {"model": "base", "prompt": "x"}
ALICE, BOB, ROOT = "sk-alice", "sk-bob", "sk-root"


class HandClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


@asynccontextmanager
async def opened(serving: Scripted, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    app = make_app(
        serving, max_body=1 << 20, metrics=HttpMetrics(CollectorRegistry()), texts=serving, **options
    )
    runner = make_runner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        yield session
    await runner.cleanup()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(
        table("alice", ALICE)
        + 'models = ["org/*"]\nmax_concurrency = 1\n'
        + table("bob", BOB)
        + table("root", ROOT)
        + "actions = true\n"
    )
    return path


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_no_key_no_answer(serving: Scripted, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "muxd.access")
    async with opened(serving, keys=file) as http:
        for headers in ({}, bearer("sk-wrong"), {"x-api-key": "ünknown"}, {"Authorization": f"Basic {BOB}"}):
            async with http.post("/v1/completions", json=BODY, headers=headers) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["code"]) == (401, "invalid_api_key")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        async with http.post("/v1/messages", json={}) as answer:
            assert (await answer.json())["error"]["type"] == "authentication_error"
        for path in ("/v1/models", "/metrics", "/"):
            assert (await http.get(path)).status == 401
        for path in ("/health", "/health/base", "/ping"):
            assert (await http.get(path)).status == 200
        for headers in (bearer(BOB), {"x-api-key": BOB}):
            async with http.post("/v1/completions", json=BODY, headers=headers) as answer:
                assert answer.status == 200
        text = await (await http.get("/metrics", headers=bearer(BOB))).text()
    assert 'muxd_http_key_requests_total{key="bob",status="200"} 2.0' in text
    assert 'muxd_http_key_tokens_total{key="bob",kind="completion"} ' in text
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "key=bob" in line]) == 2
    assert not any(secret in line for line in lines for secret in (ALICE, BOB, ROOT))


async def test_a_key_has_its_models(serving: Scripted, file: Path) -> None:
    async with opened(serving, keys=file) as http:
        listed = await (await http.get("/v1/models", headers=bearer(ALICE))).json()
        assert [model["id"] for model in listed["data"]] == ["org/chat-model"]
        async with http.post("/v1/completions", json=BODY, headers=bearer(ALICE)) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["code"]) == (404, "model_not_found")
            assert "base" not in error["message"].replace("'base'", "")
        long = BODY | {"prompt": "x" * (70 << 10)}  # its model is known only after it was read
        async with http.post("/v1/completions", json=long, headers=bearer(ALICE)) as answer:
            assert answer.status == 404


@pytest.fixture
def weighted(tmp_path: Path) -> Path:
    path = tmp_path / "weighted.toml"
    path.write_text(table("alice", ALICE) + "weight = 2.5\n" + table("bob", BOB))
    return path


async def test_the_engine_hears_whose_a_request_is(serving: Scripted, weighted: Path) -> None:
    async with opened(serving, keys=weighted) as http:
        for key in (ALICE, BOB):
            async with http.post("/v1/completions", json=BODY | {"n": 2}, headers=bearer(key)) as answer:
                assert answer.status == 200
    async with opened(serving) as http, http.post("/v1/completions", json=BODY) as answer:
        assert answer.status == 200
    asked = [(one.key, one.weight) for one in serving.requests]
    assert asked == [("alice", 2.5)] * 2 + [("bob", 1.0)] * 2 + [("", 1.0)]


async def test_so_many_at_once(serving: Scripted, file: Path) -> None:
    serving.play = serving.hold()
    body = {"model": "org/chat-model", "prompt": "x", "stream": True}
    async with opened(serving, keys=file) as http:
        async with http.post("/v1/completions", json=body, headers=bearer(ALICE)) as first:
            assert first.status == 200
            async with http.post("/v1/completions", json=body, headers=bearer(ALICE)) as second:
                error = (await second.json())["error"]
                assert (second.status, error["code"]) == (429, "concurrency_limit")
                assert second.headers["Retry-After"] == "1"
            async with http.post("/v1/completions", json=body, headers=bearer(BOB)) as other:
                assert other.status == 200
        await serving.closing.wait()
        serving.play = serving.say("fine")
        async with http.post("/v1/completions", json=body, headers=bearer(ALICE)) as again:
            assert again.status == 200


async def test_actions_need_a_right(serving: Scripted, file: Path) -> None:
    async with opened(serving, keys=file) as http:
        assert (await http.get("/unload", headers=bearer(BOB))).status == 403
        assert (await http.get("/unload", headers=bearer(ROOT))).status == 200
    assert {model.state for model in serving.by_name.values()} == {"unloaded"}


async def test_without_keys_actions_are_this_machines(serving: Scripted) -> None:
    async with opened(serving) as http:
        for headers in ({"X-Forwarded-For": "10.1.1.1"}, {"Sec-Fetch-Site": "cross-site"}):
            assert (await http.get("/unload", headers=headers)).status == 403
        assert {model.state for model in serving.by_name.values()} == {"ready"}
        assert (await http.get("/unload")).status == 200


def test_a_changed_file_holds(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock()
    keys = Keys(file, clock)
    assert keys.find(ALICE) is not None
    file.write_text(table("carol", "sk-carol"))
    clock.time += 2
    assert keys.find(ALICE) is None
    carol = keys.find("sk-carol")
    assert carol is not None
    assert carol.name == "carol"
    file.write_text("[[key]]\nname = 3\n")
    clock.time += 2
    assert keys.find("sk-carol") is not None
    assert "keys.toml" in caplog.text
    os.remove(file)
    clock.time += 2
    assert keys.find("sk-carol") is not None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[[key]]\nname = 'a'\n", "hash"),
        ("[[key]]\nname = 'a'\nhash = 'sk-plain'\n", "key.hash"),
        (table("a", "x").replace('"a"', '"a b"'), "key.name"),
        (table("a", "x") * 2, "two keys"),
        (table("a", "x") + "max_concurrency = -1\n", "max_concurrency"),
        (table("a", "x") + "weight = 0\n", "weight"),
        (table("a", "x") + "weight = nan\n", "weight"),
        (table("a", "x") + "model = ['x']\n", "model"),
        ("not toml", "keys.toml"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"server\.keys") as caught:
        Keys(path, HandClock())
    assert word in caught.value.message
    assert "sk-plain" not in caught.value.message


def test_new_keys_differ() -> None:
    one, other = new_key(), new_key()
    assert one != other
    assert digest(one) in table("me", one)
    assert one not in table("me", one)


async def test_preflight_and_what_a_page_may_read(serving: Scripted) -> None:
    page = "https://chat.example"
    asks = {
        "Origin": page,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    async with opened(serving, cors_origins=[page]) as http:
        async with http.options(CHAT, headers=asks) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == page
            assert answer.headers["Access-Control-Allow-Headers"] == "authorization, content-type"
            assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        for stream in (False, True):
            async with http.post(
                "/v1/completions", json=BODY | {"stream": stream}, headers={"Origin": page}
            ) as answer:
                assert answer.headers["Access-Control-Allow-Origin"] == page
                assert "x-request-id" in answer.headers["Access-Control-Expose-Headers"]
                assert answer.headers["Vary"] == "Origin"
        for headers in (asks | {"Origin": "https://evil.example"}, {"Origin": page}):
            async with http.options(CHAT, headers=headers) as answer:
                assert answer.status == 405
        async with http.get("/v1/models", headers={"Origin": "https://evil.example"}) as answer:
            assert "Access-Control-Allow-Origin" not in answer.headers
    async with opened(serving) as http, http.options(CHAT, headers=asks) as answer:
        assert (answer.status, "Access-Control-Allow-Origin" in answer.headers) == (405, False)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("localhost:1", 200),
        ("a.localhost", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7", 200),
        ("ours.example", 200),
    ],
)
async def test_names_of_a_loopback_address(serving: Scripted, host: str, status: int) -> None:
    async with opened(serving, allowed_hosts=["Ours.example"]) as http:
        assert (await http.get("/v1/models", headers={"Host": host})).status == status


async def test_a_request_without_a_name(connect: Connect) -> None:
    reader, _ = await connect(b"GET /health HTTP/1.0\r\n\r\n")
    assert b"200" in await reader.readline()


async def test_a_stream_is_ended_by_its_id(door: Door, serving: Scripted, chat_body: dict[str, Any]) -> None:
    serving.play = serving.hold()
    stream = await door.openai.chat.completions.create(**chat_body, stream=True)
    first = await anext(stream)
    async with door.http.delete(f"/v1/requests/{first.id}") as answer:
        assert (answer.status, (await answer.json())["cancelled"]) == (200, 1)
    with pytest.raises(Exception, match="cancelled by its id"):
        async for _ in stream:
            pass
    assert serving.closed == [False]
    assert (await door.http.delete(f"/v1/requests/{first.id}")).status == 404


async def test_a_whole_answer_is_ended_by_the_header(
    door: Door, serving: Scripted, chat_body: dict[str, Any]
) -> None:
    serving.play = serving.hold()
    asked = asyncio.create_task(door.post(CHAT, chat_body, **{"x-request-id": "mine"}))
    await serving.submitted.wait()
    assert (await door.http.delete("/v1/requests/mine")).status == 200
    status, answer, headers = await asked
    assert (status, answer["error"]["code"]) == (499, "request_cancelled")
    assert headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_a_request_whose_text_is_being_read_is_ended(
    door: Door, serving: Scripted, chat_body: dict[str, Any], path: str
) -> None:
    serving.text_goes_on.clear()
    asked = asyncio.create_task(door.post(path, chat_body, **{"x-request-id": "mine"}))
    await serving.text_came.wait()
    assert (await door.http.delete("/v1/requests/mine")).status == 200
    status, answer, _ = await asked
    assert (status, answer["error"]["code"]) == (499, "request_cancelled")
    assert (await door.http.delete("/v1/requests/mine")).status == 404
    assert serving.requests == []


async def test_a_key_ends_its_own_requests(serving: Scripted, file: Path) -> None:
    serving.play = serving.hold()
    headers = bearer(BOB) | {"x-request-id": "bobs"}
    async with opened(serving, keys=file) as http:
        asked = asyncio.create_task(http.post("/v1/completions", json=BODY, headers=headers))
        await serving.submitted.wait()
        assert (await http.delete("/v1/requests/bobs", headers=bearer(ALICE))).status == 404
        assert (await http.delete("/v1/requests/bobs", headers=bearer(BOB))).status == 200
        assert (await asked).status == 499


async def test_what_can_never_fit_is_not_to_be_tried_again(door: Door, serving: Scripted) -> None:
    serving.by_name["base"].max_queue = 4
    for change, param in (({"prompt": ["a"] * 5}, "prompt"), ({"n": 5}, "n")):
        status, answer, headers = await door.post("/v1/completions", BODY | change)
        assert (status, answer["error"]["param"]) == (400, param)
        assert (answer["error"]["code"], headers["x-should-retry"]) == ("too_many_sequences", "false")
    assert serving.requests == []
    assert (await door.post("/v1/completions", BODY | {"n": 4}))[0] == 200


async def test_long_headers(door: Door) -> None:
    assert (
        await door.http.get("/v1/models", headers={"Authorization": f"Bearer {'x' * 20_000}"})
    ).status == 200
