"""What a server costs: the same greedy work by a bare torch loop and through muxd over HTTP, in one run.

For one stream and for ``--streams`` at once: tokens per second of both, their ratio, time to first token,
and the CPU seconds the parent process spends per 1,000 tokens. The two take turns, ``--rounds`` times, and
medians are printed, so that a machine whose speed drifts does not decide the ratio.

    python benchmarks/engine.py                       # SmolLM2 of `make demo`
    python benchmarks/engine.py --model FOLDER --streams 32 --prompt 128 --new 128 --rounds 3
"""

import argparse
import asyncio
import json
import multiprocessing as mp
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import aiohttp
from rich.console import Console
from rich.progress import track
from rich.table import Table

from muxd.admin.client import AdminClient
from muxd.config import home

sys.path.insert(0, str(Path(__file__).parent))


@dataclass
class Run:
    """One round of one contestant."""

    tokens: int
    seconds: float
    first: float = 0.0  # median time to first token
    parent_cpu: float = 0.0  # seconds

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def bare_process(pipe: Connection, folder: Path, threads: int) -> None:
    """The bare loop in a process of its own, so that it shares no thread pool with anybody."""
    import torch
    from bare_loop import BareLoop

    torch.set_num_threads(threads)
    loop = BareLoop(folder)
    loop.run([[1, 2, 3]], 4)
    pipe.send("ready")
    while (work := pipe.recv()) is not None:
        prompts, new = work
        _, seconds = loop.run(prompts, new)
        pipe.send(seconds)


@contextmanager
def daemon(folder: Path, dtype: str) -> Iterator[tuple[str, AdminClient]]:
    """A muxd that serves the one model; yields its URL and its admin door."""
    with tempfile.TemporaryDirectory(prefix="muxd-bench-") as scratch:
        config = Path(scratch, "muxd.toml")
        config.write_text(f'[[model]]\nname = "m"\npath = "{folder}"\ndtype = "{dtype}"\n')
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(f"{scratch}/notify")
        command = [sys.executable, "-m", "muxd.cli.muxd", "serve", "--config", str(config), "--port", "0"]
        process = subprocess.Popen(
            [*command, "--socket", f"{scratch}/admin", "--log-level", "warning"],
            env={**os.environ, "NOTIFY_SOCKET": f"{scratch}/notify", "STATE_DIRECTORY": scratch},
            stdout=subprocess.DEVNULL,
        )
        try:
            listener.settimeout(120)
            while b"READY=1" not in listener.recv(4096):
                pass
            admin = AdminClient(Path(scratch, "admin"))
            yield admin.status().address, admin
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            listener.close()


async def one_stream(session: aiohttp.ClientSession, prompt: list[int], new: int) -> float:
    """Read one stream to its end; returns seconds to its first event."""
    body = {
        "model": "m", "prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    begun, first, tail = time.perf_counter(), 0.0, b""
    async with session.post("/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for piece in answer.content.iter_any():
            first = first or time.perf_counter() - begun
            tail = (tail + piece)[-2000:]
    usage = json.loads(tail.split(b"data: ")[-2])["usage"]
    if usage["completion_tokens"] != new:
        raise RuntimeError(f"asked for {new} tokens, got {usage}")
    return first


async def through_http(url: str, prompts: list[list[int]], new: int) -> tuple[float, float]:
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        begun = time.perf_counter()
        firsts = await asyncio.gather(*(one_stream(session, prompt, new) for prompt in prompts))
        return time.perf_counter() - begun, median(firsts)


def parent_cpu(admin: AdminClient) -> float:
    return next(row.cpu_seconds for row in admin.ps() if row.role == "daemon")


def measure(args: argparse.Namespace) -> dict[int, tuple[list[Run], list[Run]]]:
    """Streams -> rounds of (bare, muxd)."""
    ours, theirs = mp.get_context("spawn").Pipe()
    bare = mp.get_context("spawn").Process(target=bare_process, args=(theirs, args.model, args.threads))
    bare.start()
    found: dict[int, tuple[list[Run], list[Run]]] = {}
    rng = random.Random(0)
    try:
        ours.recv()
        with daemon(args.model, "bfloat16") as (url, admin):
            asyncio.run(through_http(url, [[1, 2, 3]], 4))
            counts = [1, args.streams]
            for count in track([c for _ in range(args.rounds) for c in counts], "measuring"):
                prompts = [[rng.randrange(5, 5000) for _ in range(args.prompt)] for _ in range(count)]
                ours.send((prompts, args.new))
                plain = Run(count * args.new, ours.recv())
                before = parent_cpu(admin)
                seconds, first = asyncio.run(through_http(url, prompts, args.new))
                served = Run(count * args.new, seconds, first, parent_cpu(admin) - before)
                rounds = found.setdefault(count, ([], []))
                rounds[0].append(plain)
                rounds[1].append(served)
        ours.send(None)
    finally:
        bare.join(10)
        bare.kill()
    return found


def report(found: dict[int, tuple[list[Run], list[Run]]], args: argparse.Namespace) -> None:
    table = Table(title=f"{args.model.name}, prompt {args.prompt}, new {args.new}, {args.threads} threads")
    for column in ("streams", "bare tok/s", "muxd tok/s", "ratio", "TTFT ms", "parent CPU s / 1,000 tok"):
        table.add_column(column, justify="right")
    rows = []
    for count, (plain, served) in found.items():
        row = {
            "streams": count,
            "bare_tokens_per_second": median(run.rate for run in plain),
            "muxd_tokens_per_second": median(run.rate for run in served),
            "ratio": median(b.rate / a.rate for a, b in zip(plain, served, strict=True)),
            "ttft_ms": median(run.first for run in served) * 1000,
            "parent_cpu_per_1000": median(run.parent_cpu / run.tokens for run in served) * 1000,
        }
        rows.append(row)
        table.add_row(
            str(count), *(f"{row[key]:.{digits}f}" for key, digits in (
                ("bare_tokens_per_second", 1), ("muxd_tokens_per_second", 1), ("ratio", 3), ("ttft_ms", 0),
                ("parent_cpu_per_1000", 3),
            ))
        )  # fmt: skip
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=home() / "models" / "smollm2-135m-instruct")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=128, help="tokens per prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens to generate per stream")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    report(measure(args), args)


if __name__ == "__main__":
    main()
