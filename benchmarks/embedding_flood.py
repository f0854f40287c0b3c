"""What a flood of texts to be embedded costs the answers of a model beside it.

    python benchmarks/embedding_flood.py [--chat FOLDER] [--embed FOLDER] [--seconds 20] [--share 50]

One daemon, two models, one pool. ``--streams`` answers go on all the time; their gaps between tokens are
taken alone, and beside ``--clients`` clients that send 32 texts of some 60 tokens again and again. Shown too
is what the flood gets, alone and beside the answers, and how much longer the 99th percentile of gaps gets.
Two to three minutes. The flood's client is this process: on two cores it is in the numbers.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
from rich.console import Console
from rich.table import Table

from muxd.cli.local_daemon import local_daemon
from muxd.config import home

TEXT = (
    "The committee met on Tuesday to discuss the budget of the coming year; after some hours of debate it "
    "was agreed that the library would stay open on Sundays, and new chairs would have to wait. Number {}."
)
TEXTS = 32
SKIPPED = 2.0  # seconds before anything counts


class Run:
    """Gaps between a stream's tokens, and texts that were embedded, while ``counts``."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.texts = 0
        self.counts = False


async def stream(session: aiohttp.ClientSession, run: Run) -> None:
    body = {
        "model": "chat",
        "prompt": "Once",
        "max_tokens": 500,
        "ignore_eos": True,
        "stream": True,
        "seed": 1,
    }
    while True:
        last = 0.0
        async with session.post("/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    now = time.perf_counter() if run.counts else 0.0
                    if last and now:
                        run.gaps.append(now - last)
                    last = now


async def flood(session: aiohttp.ClientSession, run: Run) -> None:
    number = 0
    while True:
        texts = [TEXT.format(number + i) for i in range(TEXTS)]
        number += TEXTS
        async with session.post("/v1/embeddings", json={"model": "embed", "input": texts}) as answer:
            json.loads(await answer.read())["data"]
        run.texts += TEXTS if run.counts else 0


async def measure(url: str, seconds: float, streams: int, clients: int) -> Run:
    run = Run()
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(None)) as session:
        tasks = [asyncio.create_task(stream(session, run)) for _ in range(streams)]
        tasks += [asyncio.create_task(flood(session, run)) for _ in range(clients)]
        await asyncio.sleep(SKIPPED)
        run.counts = True
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        run.counts = False
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()
    return run


def at(values: list[float], part: float) -> float:
    """Milliseconds."""
    return 1000 * sorted(values)[int(part * (len(values) - 1))] if values else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = home() / "models"
    parser.add_argument("--chat", type=Path, default=models / "smollm2-135m-instruct")
    parser.add_argument("--embed", type=Path, default=models / "all-minilm-l6-v2")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--share", type=int, default=50, help="of the chat model, in percent")
    parser.add_argument("--prefill-seconds", type=float, default=0.0, help="scheduler.prefill_seconds")
    parser.add_argument("--cores", type=int, nargs="+", default=[], help="those that workers compute on")
    parser.add_argument("--policies", nargs="+", default=["mux", "fcfs"])
    args = parser.parse_args()
    device = f'[[device]]\nname = "cpu:0"\ncores = {args.cores}\n' if args.cores else ""
    ratios: list[str] = []
    table = Table("policy", "case", "gap p50, ms", "p99", "worst", "tokens/s", "texts/s")
    for policy in args.policies:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "muxd.toml"
            file.write_text(
                f'[pool]\nbytes = "256M"\n[scheduler]\npolicy = "{policy}"\n'
                f"prefill_seconds = {args.prefill_seconds}\n{device}"
                f'[[model]]\nname = "chat"\npath = "{args.chat}"\nshare = {args.share}\n'
                f'[[model]]\nname = "embed"\npath = "{args.embed}"\nshare = {100 - args.share}\n'
            )
            with local_daemon(file) as admin:
                cases = (("answers alone", args.streams, 0), ("texts alone", 0, args.clients))
                p99: dict[str, float] = {}
                for name, streams, clients in (*cases, ("both", args.streams, args.clients)):
                    run = asyncio.run(measure(admin.status().address, args.seconds, streams, clients))
                    rates = (f"{len(run.gaps) / args.seconds:.0f}", f"{run.texts / args.seconds:.0f}")
                    p99[name] = at(run.gaps, 0.99)
                    gaps = (at(run.gaps, 0.5), p99[name], at(run.gaps, 1.0))
                    table.add_row(policy, name, *(f"{gap:.1f}" if run.gaps else "-" for gap in gaps), *rates)
                ratio = p99["both"] / p99["answers alone"]
                ratios.append(f"{policy}: p99 of gaps beside the flood {ratio:.2f} times that alone")
    Console().print(table)
    print("\n".join(ratios))


if __name__ == "__main__":
    main()
