"""What one caller's flood costs the others: fifty keys, one model, a live daemon.

    python benchmarks/fair_keys.py [--model FOLDER] [--seconds 60] [--rate 4.0] [--flood 300] [--weight 1.0]

Forty-nine keys send short requests at random times, ``--rate`` a second in all; then the same again while a
fiftieth, of ``--weight``, keeps ``--flood`` requests waiting from the first second to the last. Shown is the
time to the first token of the forty-nine, and the ratio of its p99. Two to three minutes.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import numpy as np

from muxd.api.keys import new_key, table
from muxd.cli.local_daemon import local_daemon
from muxd.config import home

CALLERS = 49
PROMPT = "Tell me about the rivers of this country, "
ANSWER, FLOODED = 16, 48  # tokens


@dataclass(frozen=True)
class Call:
    time: float  # seconds after the start
    key: str


def calls(keys: list[str], seconds: float, rate: float) -> list[Call]:
    draw = random.Random(1)
    found, now = list[Call](), 0.0
    while (now := now + draw.expovariate(rate)) < seconds:
        found.append(Call(now, draw.choice(keys)))
    return found


async def first_token(http: aiohttp.ClientSession, key: str, prompt: str, tokens: int) -> float:
    """Seconds. The rest of the answer is read to its end."""
    body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    began, first = time.perf_counter(), 0.0
    async with http.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"}) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if not first and line.startswith(b"data: {"):
                first = time.perf_counter() - began
    return first


def session(url: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(None)
    )


async def waits(url: str, asked: list[Call]) -> list[float]:
    async with session(url) as http:

        async def later(call: Call, number: int) -> float:
            await asyncio.sleep(call.time)
            return await first_token(http, call.key, f"{number}. {PROMPT}", ANSWER)

        return await asyncio.gather(*(later(call, number) for number, call in enumerate(asked)))


def flood(url: str, key: str, count: int, over: Event) -> None:
    """In a process of its own: who measures the others must not wait for what it sends."""
    os.nice(10)
    answered = 0

    async def asks(http: aiohttp.ClientSession, number: int) -> None:
        nonlocal answered
        while True:
            await first_token(http, key, f"flood {number}, {answered}. {PROMPT * 8}", FLOODED)
            answered += 1

    async def run() -> None:
        async with session(url) as http:
            tasks = [asyncio.ensure_future(asks(http, number)) for number in range(count)]
            await asyncio.to_thread(over.wait)
            for one in tasks:
                one.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    print(f"  the flood had {answered} answers, and {count} requests waiting all along")


def beside(url: str, asked: list[Call], key: str, count: int) -> list[float]:
    """The others' times to the first token, while ``key`` keeps ``count`` requests waiting."""
    context = multiprocessing.get_context("spawn")
    over = context.Event()
    process = context.Process(target=flood, args=(url, key, count, over))
    process.start()
    try:
        return asyncio.run(waits(url, asked))
    finally:
        over.set()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=home() / "models" / "smollm2-135m-instruct")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--flood", type=int, default=300)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--prefill-tokens", type=int, default=256, help="scheduler.prefill_tokens")
    options = parser.parse_args()
    secrets = [new_key() for _ in range(CALLERS + 1)]
    with TemporaryDirectory() as folder:
        root = Path(folder)
        named = [table(f"caller{number}", one) for number, one in enumerate(secrets)]
        (root / "keys.toml").write_text("".join(named) + f"weight = {options.weight}\n")
        file = root / "muxd.toml"
        file.write_text(
            f'[server]\nkeys = "{root / "keys.toml"}"\n[pool]\nbytes = "512M"\n'
            f"[scheduler]\nprefill_tokens = {options.prefill_tokens}\n"
            f'[[model]]\nname = "m"\npath = "{options.model}"\nmax_queue = {options.flood + 100}\n'
        )
        shown = {}
        for name, count in (("alone", 0), ("beside the flood", options.flood)):
            with local_daemon(file) as daemon:
                asked = calls(secrets[:-1], options.seconds, options.rate)
                print(f"{name}: {len(asked)} requests of {CALLERS} keys")
                url = daemon.status().address
                found = beside(url, asked, secrets[-1], count) if count else asyncio.run(waits(url, asked))
            worst = sorted(zip(found, asked, strict=True), key=lambda one: -one[0])[:5]
            print("  worst:", ", ".join(f"{took:.3f} s at {call.time:.1f} s" for took, call in worst))
            shown[name] = {f"p{q}": round(float(np.quantile(found, q / 100)), 3) for q in (50, 95, 99)}
    print(json.dumps(shown, indent=1))
    quiet, flooded = (times["p99"] for times in shown.values())
    print(f"p99 of the time to the first token beside the flood: {flooded / quiet:.2f} times that alone")


if __name__ == "__main__":
    main()
