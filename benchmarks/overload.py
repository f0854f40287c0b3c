"""Ten times what a daemon can do, in open loop: what is served, refused, and how it answers meanwhile.

    python benchmarks/overload.py [--seconds 60] [--times 10] [--idle 3000] [--model FOLDER] [--json FILE]

One daemon, one model: a small random one, or that of ``--model``. First and last closed loops find what it
can do (the peak). Between them requests come at
``--times`` that rate, whether answered or not, beside ``--idle`` connections that never say a word; goodput
is the tokens a second that were served, beside the peak of the same run: answers would count only where the
stretch does not cut off their last one. Meanwhile ``/health`` and the admin socket are
asked five times a second, and the daemon's memory is looked at. Clients compute on the same cores: they are
behind everybody (nice 10), but what they take the model lacks.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import uvloop
from random_model import Form, serve

from muxd.admin.client import AdminClient
from muxd.cli.local_daemon import local_daemon

FORM = Form(256, 8, 8, 4, 768, 4096, 2048)
POOL = "512M"  # more than all that run at once ever hold
TOKENS = 256  # some ten answers a second, so that clients of ten times as many are no bottleneck
LOOPS = 48  # at once, for the peak: more than the model runs at once
BODY = {"model": "m", "prompt": "x" * 32, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}


@dataclass
class Told:
    """Of one stretch. Times in seconds."""

    seconds: float = 0.0
    served: int = 0
    first: list[float] = field(default_factory=list)  # to the first token, of those served
    refused: list[float] = field(default_factory=list)  # until told so
    statuses: Counter[int] = field(default_factory=Counter)
    without_retry: int = 0
    sent: int = 0
    frames: int = 0  # with text, of answers that were not whole in time, too
    cpu: float = 0.0  # of the clients' process


async def ask(session: aiohttp.ClientSession, told: Told) -> None:
    try:
        await answered(session, told)
    except aiohttp.ClientError:
        told.statuses[0] += 1  # hung up


async def answered(session: aiohttp.ClientSession, told: Told) -> None:
    began = time.perf_counter()
    told.sent += 1
    async with session.post("/v1/completions", json=BODY) as answer:
        told.statuses[answer.status] += 1
        if answer.status != 200:
            await answer.read()
            told.refused.append(time.perf_counter() - began)
            told.without_retry += "retry-after" not in answer.headers
            return
        first = 0.0
        async for line in answer.content:
            if line.startswith(b"data: {"):
                told.frames += 1
                first = first or time.perf_counter() - began
            if line.startswith(b"data: [DONE]"):
                told.served += 1
                told.first.append(first)


async def closed(session: aiohttp.ClientSession, seconds: float) -> Told:
    """What it can do: ``LOOPS`` clients that ask again when they are answered."""
    told, end = Told(), time.perf_counter() + seconds

    async def loop() -> None:
        while time.perf_counter() < end:
            await ask(session, told)

    began = time.perf_counter()
    await asyncio.gather(*(loop() for _ in range(LOOPS)))
    told.seconds = time.perf_counter() - began
    return told


async def opened(session: aiohttp.ClientSession, seconds: float, rate: float) -> Told:
    """Poisson arrivals. Those that are still answered at the end are not waited for."""
    told, draw, tasks = Told(), random.Random(1), set()
    began = due = time.perf_counter()
    while (now := time.perf_counter()) < began + seconds:
        if due > now:
            await asyncio.sleep(due - now)
        task = asyncio.create_task(ask(session, told))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        due += draw.expovariate(rate)
    told.seconds = time.perf_counter() - began
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return told


async def watch(over: asyncio.Event, look: Callable[[], Coroutine[Any, Any, object]]) -> list[float]:
    """Seconds that each look took, five a second, until it is over."""
    took = []
    while not over.is_set():
        began = time.perf_counter()
        await look()
        took.append(time.perf_counter() - began)
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), 0.2)
    return took


def clients(url: str, seconds: float, rate: float, pipe: Any) -> None:
    """A process of its own; ``rate`` 0: closed loops."""
    os.nice(10)

    async def run() -> Told:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(seconds + 120)
        async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
            before = time.process_time()
            told = await (opened(session, seconds, rate) if rate else closed(session, seconds))
            told.cpu = time.process_time() - before
            return told

    pipe.send(uvloop.run(run()))


async def stretch(admin: AdminClient, url: str, seconds: float, rate: float) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=clients, args=(url, seconds, rate, theirs))
    before, used, over = memory(admin), processors(admin), asyncio.Event()
    process.start()
    async with aiohttp.ClientSession(url) as session:

        async def health() -> None:
            async with session.get("/health") as answer:
                await answer.read()

        looks = [
            asyncio.create_task(watch(over, health)),
            asyncio.create_task(watch(over, lambda: asyncio.to_thread(admin.status))),
        ]
        told: Told = await asyncio.to_thread(ours.recv)
        over.set()
        healthy, asked = await asyncio.gather(*looks)
        cpu = {role: (now - used[role]) / told.seconds for role, now in processors(admin).items()}
    process.join()
    return {
        "seconds": told.seconds, "sent": told.sent, "served a second": told.served / told.seconds,
        "statuses": dict(told.statuses), "refusals without Retry-After": told.without_retry,
        "frames a second": told.frames / told.seconds, "cores": cpu | {"clients": told.cpu / told.seconds},
        "first token": spread(told.first), "refusal": spread(told.refused),
        "/health": spread(healthy), "admin": spread(asked), "memory before, MB": before,
        "memory after, MB": memory(admin),
    }  # fmt: skip


def spread(times: list[float]) -> dict[str, float]:
    """Milliseconds."""
    if not times:
        return {}
    times = sorted(times)
    return {"p50": 1e3 * statistics.median(times), "p99": 1e3 * times[int(0.99 * (len(times) - 1))],
            "worst": 1e3 * times[-1]}  # fmt: skip


def memory(admin: AdminClient) -> int:
    return next(row.memory_bytes for row in admin.ps() if row.role == "daemon") >> 20


def processors(admin: AdminClient) -> dict[str, float]:
    """CPU seconds up to now, by role."""
    used: dict[str, float] = defaultdict(float)
    for row in admin.ps():
        used[row.role] += row.cpu_seconds
    return used


async def measure(admin: AdminClient, seconds: float, times: float, idle: int) -> dict[str, Any]:
    url = admin.status().address
    host, _, port = url.removeprefix("http://").partition(":")
    peak = await stretch(admin, url, min(20.0, seconds), 0.0)
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(idle)]
    flood = await stretch(admin, url, seconds, times * peak["served a second"])
    for _, writer in silent:
        writer.close()
    again = await stretch(admin, url, min(20.0, seconds), 0.0)
    books = admin.audit()
    assert not books.fault, books.fault
    most = (peak["frames a second"] + again["frames a second"]) / 2  # a machine's speed changes
    return {"peak": peak, "flood": flood, "peak again": again, "idle connections": idle,
            "goodput": flood["frames a second"] / most}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--idle", type=int, default=3000)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        root = Path(stack.enter_context(TemporaryDirectory(prefix="muxd-overload-")))
        file = root / "muxd.toml"
        folder = given.model or serve(root / "m", FORM)
        file.write_text(f'[pool]\nbytes = "{POOL}"\n[[model]]\nname = "m"\npath = "{folder.absolute()}"\n')
        admin = stack.enter_context(local_daemon(file))
        found = uvloop.run(measure(admin, given.seconds, given.times, given.idle))
    print(json.dumps(found, indent=1))
    print(f"goodput {found['goodput']:.2f} of the peak, at {given.times:g} times its rate")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
