"""What the ingress of several hosts costs beside a direct muxd: milliseconds a request, microseconds a token.

    .venv-ray/bin/python benchmarks/ray_ingress.py [--rounds 5] [--json FILE]

One muxd with a random model, and a Ray cluster of one node on this machine that has adopted it, so that both
ways end at the same daemon. Each round asks directly, then through the ingress: requests of one token one
after the other, then streams, alone and eight at once. Clients are one process of this script; on few cores
it, Ray's proxy, the ingress and the daemon share them, so that what is shown is an upper bound. Shown are
medians over rounds and their spread.
"""

import argparse
import asyncio
import json
import os
import socket
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import ray
from random_model import Form, serve
from ray import serve as ray_serve
from rich.console import Console
from rich.table import Table

from muxd.cli.local_daemon import local_daemon
from muxd.ray import app

FORM = Form(64, 2, 4, 2, 96, 512, 4096)
REQUESTS = 50
TOKENS = 400


async def ask(session: aiohttp.ClientSession, url: str, tokens: int, stream: bool) -> float:
    """Seconds until the whole answer is there."""
    body = {"model": "random", "prompt": "x", "max_tokens": tokens, "ignore_eos": True, "stream": stream}
    began = time.perf_counter()
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        text = await answer.read()
        assert answer.status == 200, text
        assert not stream or text.endswith(b"data: [DONE]\n\n")
    return time.perf_counter() - began


async def measure(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Milliseconds a request, microseconds a token."""
    short = [await ask(session, url, 1, False) for _ in range(REQUESTS)]
    alone = await ask(session, url, TOKENS, True)
    eight = await asyncio.gather(*(ask(session, url, TOKENS, True) for _ in range(8)))
    return {
        "request, ms": median(short) * 1e3,
        "token, one stream, us": alone / TOKENS * 1e6,
        "token, eight streams, us": max(eight) / (8 * TOKENS) * 1e6,
    }


async def reported(session: aiohttp.ClientSession, ingress: str) -> None:
    """Until the node has told of its muxd."""
    while True:
        async with session.get(f"{ingress}/health") as answer:
            if (await answer.json())["models"] == {"random": "ready"}:
                return
        await asyncio.sleep(0.2)


async def rounds(direct: str, ingress: str, count: int) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    async with aiohttp.ClientSession() as session:
        await reported(session, ingress)
        for number in range(-1, count):  # the first warms up
            for way, url in (("direct", direct), ("ingress", ingress)):
                for what, value in (await measure(session, url)).items():
                    if number >= 0:
                        found[what][way].append(value)
    return found


def show(found: dict[str, dict[str, list[float]]]) -> None:
    table = Table("", "direct", "ingress", "ratio", "added")
    for what, ways in found.items():
        shown = [f"{median(ways[way]):.2f} ({min(ways[way]):.2f}-{max(ways[way]):.2f})" for way in ways]
        direct, ingress = (median(ways[way]) for way in ("direct", "ingress"))
        table.add_row(what, *shown, f"{ingress / direct:.2f}", f"{ingress - direct:.2f}")
    Console().print(table)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with TemporaryDirectory() as folder:
        model = serve(Path(folder, "random"), FORM)
        config = Path(folder, "muxd.toml")
        config.write_text(f'[pool]\nbytes = "64M"\n[[model]]\nname = "random"\npath = "{model}"\n')
        with local_daemon(config) as admin:
            ray.init(
                num_cpus=1,
                resources={"muxd": 1},
                object_store_memory=80 << 20,
                include_dashboard=False,
                log_to_driver=False,
            )
            try:
                port = free_port()
                options: dict[str, Any] = {"host": "127.0.0.1", "port": port}
                ray_serve.start(proxy_location="HeadOnly", http_options=options)
                ray_serve.run(app({"plan": str(config), "socket": str(admin.path)}))
                address = admin.status().address
                found = asyncio.run(rounds(address, f"http://127.0.0.1:{port}", given.rounds))
            finally:
                ray_serve.shutdown()
                ray.shutdown()
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
