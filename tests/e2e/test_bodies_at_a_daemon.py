"""Whatever bodies say, a daemon with real models answers, blames the client, and is afterwards as it was.

Some hundred by default; MUXD_FUZZ=100000 says how many (`make fuzz`), MUXD_FUZZ_SEED where to begin.
"""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import httpx2 as httpx
import pytest
from support.bodies import Bodies, Body
from support.live import LiveDaemon
from support.tiny import VOCAB, tiny_served
from support.where import EVERYWHERE, Where, on

COUNT = int(os.environ.get("MUXD_FUZZ", "600"))
FIRST = int(os.environ.get("MUXD_FUZZ_SEED", "0"))
CLIENTS = 4  # connections, each kept for all of its requests
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.tool_calls }}{% endfor %}{{ shout }}"
ALLOWED = {200, 400, 404}
BODIES = Bodies("chat", "text", VOCAB)

pytestmark = on(*EVERYWHERE)


@pytest.fixture
def daemon(where: Where, tmp_path: Path) -> Iterator[LiveDaemon]:
    config = '[pool]\nbytes = "16M"\n'
    for seed, name in enumerate(("chat", "text")):
        folder = tiny_served(tmp_path / name, seed)
        config += f'[[model]]\nname = "{name}"\npath = "{folder}"\nmax_context = 40\nmax_queue = 2048\n'
    (tmp_path / "chat" / "chat_template.jinja").write_text(TEMPLATE)
    with where.live(config, tmp_path) as daemon:
        yield daemon


def greedy(daemon: LiveDaemon) -> list[list[int]]:
    """Token ids of an ordinary answer of each model."""
    body = {
        "prompt": "Hello",
        "max_tokens": 24,
        "temperature": 0,
        "return_token_ids": True,
        "ignore_eos": True,
    }
    found = []
    for name in ("chat", "text"):
        answer = httpx.post(f"{daemon.url}/v1/completions", json={"model": name, **body}, timeout=60)
        found.append(answer.json()["choices"][0]["token_ids"])
    return found


def processes(daemon: LiveDaemon) -> set[tuple[str, int]]:
    return {(row.role, row.pid) for row in daemon.admin.ps()}


def fault(path: str, status: int, kind: str, raw: bytes) -> str:
    """What is wrong with an answer, empty if nothing is."""
    if status not in ALLOWED:
        return f"status {status}"
    if kind.startswith("text/event-stream"):
        return (
            ""
            if ended(path, [frame for frame in raw.split(b"\n\n") if frame])
            else "a stream without its end"
        )
    if kind.startswith("application/x-ndjson"):
        return "" if json.loads(raw.splitlines()[-1]).get("done") else "lines without their end"
    content = json.loads(raw)
    error = content.get("error")
    if status == 200:
        return "an error with status 200" if error else ""
    if path.startswith("/api/"):
        return "" if isinstance(error, str) else "another error than Ollama's"
    more = set() if path.startswith("/v1/messages") else {"param", "code"}
    return "" if set(error) == {"message", "type", *more} else "another error object"


def ended(path: str, frames: list[bytes]) -> bool:
    if path in ("/v1/responses", "/v1/messages"):
        return frames[-1].split(b"\n")[0].removeprefix(b"event: ") in (
            *(b"message_stop", b"response.completed", b"response.incomplete"),
        )
    frames = [frame.removeprefix(b"data: ") for frame in frames]
    return frames[-1] == b"[DONE]" and all("choices" in json.loads(frame) for frame in frames[:-1])


async def throw(url: str) -> tuple[Counter[int], list[str]]:
    """Statuses, and what was wrong, of COUNT bodies that several connections send."""
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    seeds = iter(range(FIRST, FIRST + COUNT))

    async def one(http: aiohttp.ClientSession, seed: int, body: Body) -> None:
        headers = {"Content-Type": "application/json"}
        async with http.post(body.path, data=body.data, headers=headers) as answer:
            raw = await answer.read()
        statuses[answer.status] += 1
        if what := fault(body.path, answer.status, answer.content_type, raw):
            wrong.append(f"MUXD_FUZZ_SEED={seed} MUXD_FUZZ=1, {what}: {raw[-300:]!r} to {body}")

    async def client(http: aiohttp.ClientSession) -> None:
        for seed in seeds:
            await one(http, seed, BODIES.any(random.Random(seed)))

    connector = aiohttp.TCPConnector(limit=CLIENTS)
    async with aiohttp.ClientSession(url, connector=connector) as http:
        await asyncio.gather(*(client(http) for _ in range(CLIENTS)))
    return statuses, wrong


def test_a_daemon_is_as_it_was_after_bodies_of_any_kind(daemon: LiveDaemon) -> None:
    answers, before = greedy(daemon), processes(daemon)
    statuses, wrong = asyncio.run(throw(daemon.url))
    assert not wrong, "\n".join([f"{len(wrong)} in all", *wrong[:10]])
    assert COUNT < 100 or min(statuses[200], statuses[400]) > COUNT / 10, "some are answered, some refused"
    assert greedy(daemon) == answers
    assert processes(daemon) == before
    assert "Traceback" not in daemon.log
    pool = daemon.status().pool
    assert pool.free_blocks + pool.cached_blocks == pool.total_blocks
