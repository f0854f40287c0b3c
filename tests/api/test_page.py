"""The page, its files, its feed and its buttons, over the real door: who gets what."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from support.http_door import Scripted
from support.scripted_daemon import ScriptedService

from muxd.api.app import make_app, make_runner
from muxd.api.keys import table
from muxd.api.metrics import HttpMetrics
from muxd.watch.files import page_files

pytestmark = pytest.mark.anyio
ANNA, BOB = "sk-anna", "sk-bob"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
VERBS = ("load", "sleep", "wake", "move", "pin", "unpin", "unload")


@asynccontextmanager
async def opened(serving: Scripted, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    serving.operator = ScriptedService()
    app = make_app(
        serving, max_body=1 << 20, metrics=HttpMetrics(CollectorRegistry()), texts=serving, **options
    )
    runner = make_runner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            yield session
    finally:
        await runner.cleanup()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(table("anna", ANNA) + "actions = true\n" + table("bob", BOB))
    return path


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_a_browser_gets_the_page_and_programs_the_index(serving: Scripted, keys: Path) -> None:
    async with opened(serving, keys=keys) as http:
        for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
            assert (await http.get("/", headers=headers)).status == 401
            async with http.get("/", headers=headers | bearer(BOB)) as answer:
                assert (await answer.json())["name"] == "muxd"
                assert answer.headers["Vary"] == "Accept"
        async with http.get("/", headers=HTML) as answer:
            page = await answer.text()
            assert (answer.status, answer.content_type) == (200, "text/html")
            policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy.replace("'", "")
        assert "org/chat-model" not in page  # it knows nothing yet
        for name in {*re.findall(r'(?:src|href)="/page/([^"]+)"', page), *page_files()}:
            async with http.get(f"/page/{name}") as answer:
                assert answer.status == 200, name
                assert answer.headers["Content-Security-Policy"] == policy
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                etag = answer.headers["ETag"]
            assert (await http.get(f"/page/{name}", headers={"If-None-Match": etag})).status == 304
        for name in ("..%2ffiles.py", "files.py", "nothing.js"):
            assert (await http.get(f"/page/{name}")).status == 404


def test_the_page_asks_nobody_else_and_has_no_script_in_it() -> None:
    """What the policy would refuse, a browser of a test might not come to."""
    for name, file in page_files().items():
        text = file.body.decode()
        outside = [
            url for url in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text) if "w3.org" not in url
        ]
        assert outside == [], name
        if name.endswith(".html"):
            assert not re.search(r"<style|<script(?![^>]* src=)|\son\w+=|\sstyle=", text)
        if name.endswith(".js"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|localStorage.*key", text
            )
            for other in re.findall(r'from "\./([^"]+)"', text):
                assert other in page_files()


async def test_the_feed_over_http(serving: Scripted, keys: Path) -> None:
    async with opened(serving, keys=keys) as http:
        assert (await http.get("/api/events")).status == 401
        assert (await http.get("/api/events", headers=bearer(BOB))).status == 403
        async with http.get("/api/events", headers=bearer(ANNA)) as answer:
            assert answer.content_type == "text/event-stream"
            frames = (await answer.text()).strip().split("\n\n")
        names = [frame.split("\n")[0] for frame in frames]
        assert names == ["event: hello", "event: picture", "event: change"]
        hello, picture, change = (json.loads(frame.split("data: ")[1]) for frame in frames)
        assert hello == {"may_act": True, "keys": True}
        assert picture["models"].keys() == {"smol_lm.2", "gemma"}
        assert change["models"] == {"gemma": None}


async def test_without_keys_only_this_machine_watches_and_nobody_acts(serving: Scripted) -> None:
    async with opened(serving) as http:
        async with http.get("/api/events") as answer:
            assert '"may_act":false,"keys":false' in await answer.text()
        for headers in (
            {"X-Forwarded-For": "10.1.1.1"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Host": "rebound.example"},
        ):
            assert (await http.get("/api/events", headers=headers)).status == 403
            assert (await http.get("/api/why/chatcmpl-5-0", headers=headers)).status == 403
        for verb in VERBS[:-1]:
            async with http.post(f"/api/models/{verb}/base?device=cuda:1") as answer:
                assert answer.status == 403
                assert "server.keys" in (await answer.json())["error"]["message"]


async def test_buttons_do_what_muxctl_does_with_a_key_that_may(serving: Scripted, keys: Path) -> None:
    async with opened(serving, keys=keys) as http:
        for verb in VERBS:
            path = f"/api/models/{verb}/base?device=cuda:1"
            assert (await http.post(path)).status == 401
            assert (await http.post(path, headers=bearer(BOB))).status == 403
            foreign = bearer(ANNA) | {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
            assert (await http.post(path, headers=foreign)).status == 403
            assert (await http.get(path, headers=bearer(ANNA))).status == 405
            async with http.post(path, headers=bearer(ANNA)) as answer:
                assert answer.status == 200, await answer.text()
        async with http.post("/api/models/load/base", headers=bearer(ANNA)) as answer:
            assert await answer.json() == {
                "model": "base",
                "stage": "ready",
                "done": 4 << 20,
                "total": 4 << 20,
            }
        async with http.post("/api/models/move/base", headers=bearer(ANNA)) as answer:
            assert (answer.status, (await answer.json())["error"]["param"]) == (400, "device")
        assert (await http.post("/api/models/load/%2Fetc", headers=bearer(ANNA))).status == 404
        async with http.get("/api/why/chatcmpl-5-0", headers=bearer(ANNA)) as answer:
            assert (await answer.json())[0]["model"] == "smol_lm.2"
        assert (await http.get("/api/why/nothing", headers=bearer(ANNA))).status == 404
