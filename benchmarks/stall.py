"""How long one hostile client can hold up another model's tokens.

    python benchmarks/stall.py [--json FILE] [--tokenizer FOLDER] [--seconds 4] [--only WORD] [--cores 0]

One daemon, four tiny models: one streams, another is sent each of ``hostile.CASES`` by a client in a process
of its own. Shown are the gaps between the stream's chunks while the case lasts, beside the same stream
undisturbed right before. The machine's own noise is in both; what a case adds is the difference of the two
worst. ``--cores``: those that workers compute on. On all of them, two threads of one step can come to lie on
one core, each spinning until the other gets it, for as long as something else has the other core.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import uvloop
from hostile import CASES, TEMPLATE, head, told
from random_model import Form, serve
from rich.console import Console
from rich.table import Table

from muxd.cli.local_daemon import local_daemon
from muxd.config import home

FORM = Form(64, 2, 4, 2, 96, 49664, 4096)
WATCHED = "stream"
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
WARM = 200  # chunks before anything is measured
LEAST = 0.005  # seconds between tokens that are looked at: shorter gaps are the model's pace


def folders(root: Path, tokenizer: Path | None, cores: Sequence[int] = ()) -> str:
    """Model folders and the configuration that serves them."""
    config = '[pool]\nbytes = "256M"\n[text]\ndeadline = 3.0\n'
    if cores:
        config += f'[[device]]\nname = "cpu:0"\ncores = {list(cores)}\n'
    for name, template in ((WATCHED, ""), ("plain", ""), ("chat", PLAIN), ("template", TEMPLATE)):
        folder = serve(root / name, FORM)
        if tokenizer is not None:
            shutil.copy(tokenizer / "tokenizer.json", folder / "tokenizer.json")
        if template:
            (folder / "chat_template.jinja").write_text(template)
        config += f'[[model]]\nname = "{name}"\npath = "{folder}"\n'
    return config


class Watch:
    """A stream without end: when each of its chunks arrived."""

    def __init__(self, host: str, port: int):
        self.times: list[float] = []
        self.warm = asyncio.Event()
        self._host, self._port = host, port

    async def run(self) -> None:
        body = {"model": WATCHED, "prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        data = json.dumps(body).encode()
        while True:
            reader, writer = await asyncio.open_connection(self._host, self._port)
            writer.write(head(len(data)) + data)
            tail = b""
            while b"[DONE]" not in tail:
                more = await reader.read(1 << 16)
                assert more, f"the daemon hung up: {tail!r}"
                tail = tail[-64:] + more
                self.times.append(time.perf_counter())
                if len(self.times) == WARM:
                    self.warm.set()
            writer.close()

    def gaps(self, begin: float, end: float) -> list[float]:
        times = [begin, *(t for t in self.times if begin <= t <= end), end]
        return sorted(after - before for before, after in pairwise(times))


def client(pipe: Connection, host: str, port: int) -> None:
    """Its own process, behind everybody else: what is measured is the daemon."""
    os.nice(10)
    by_name = {case.name: case for case in CASES}
    while name := pipe.recv():
        send = by_name[name].prepare(1.0)
        pipe.send("ready")
        pipe.recv()
        pipe.send(send(host, port))


async def measure(host: str, port: int, seconds: float, only: str) -> list[dict[str, object]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=client, args=(theirs, host, port))
    process.start()
    watch = Watch(host, port)
    stream = asyncio.create_task(watch.run())
    rows = []

    async def hear() -> Any:
        return await asyncio.to_thread(ours.recv)

    warm = asyncio.create_task(watch.warm.wait())
    await asyncio.wait({warm, stream}, return_when=asyncio.FIRST_COMPLETED)
    if stream.done():
        await stream  # raises why it ended
    for case in (case for case in CASES if only in case.name):
        ours.send(case.name)
        await hear()
        begin = time.perf_counter()
        await asyncio.sleep(seconds)
        middle = time.perf_counter()
        ours.send("go")
        statuses = await hear()
        await asyncio.sleep(max(0.5, seconds - (time.perf_counter() - middle)))
        end = time.perf_counter()
        rows.append(
            _row(case.name, statuses, watch.gaps(begin, middle), watch.gaps(middle, end), end - middle)
        )
        if stream.done():
            await stream
    ours.send("")
    process.join()
    stream.cancel()
    return rows


def _row(
    name: str, statuses: list[int], quiet: list[float], hostile: list[float], took: float
) -> dict[str, object]:
    def tail(gaps: list[float], part: float) -> float:
        return gaps[min(len(gaps) - 1, int(part * len(gaps)))]

    return {
        "case": name, "answers": told(statuses), "seconds": took,
        "quiet": {"p99": tail(quiet, 0.99), "p999": tail(quiet, 0.999), "worst": quiet[-1]},
        "hostile": {"p99": tail(hostile, 0.99), "p999": tail(hostile, 0.999), "worst": hostile[-1]},
    }  # fmt: skip


def show(rows: list[dict[str, object]]) -> None:
    table = Table("case", "answers", "s", "quiet p99.9 / worst, ms", "hostile p99.9 / worst, ms", "added, ms")
    noise = max(row["quiet"]["worst"] for row in rows)  # type: ignore[index]
    for row in rows:
        quiet, hostile = row["quiet"], row["hostile"]
        table.add_row(
            str(row["case"]), str(row["answers"]), f"{row['seconds']:.1f}",
            f"{quiet['p999'] * 1e3:.1f} / {quiet['worst'] * 1e3:.1f}",  # type: ignore[index]
            f"{hostile['p999'] * 1e3:.1f} / {hostile['worst'] * 1e3:.1f}",  # type: ignore[index]
            f"{max(0.0, hostile['worst'] - noise) * 1e3:.1f}",  # type: ignore[index]
        )  # fmt: skip
    Console(width=150).print(table)
    print(
        f"noise: the worst gap of all undisturbed stretches is {noise * 1e3:.1f} ms; added is what is beyond"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--tokenizer", type=Path, help="a model folder; default: a demo model's, where it is there"
    )
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--cores", type=int, nargs="+", default=[])
    given = parser.parse_args()
    demo = home() / "models" / "smollm2-135m-instruct"
    tokenizer = given.tokenizer or (demo if demo.is_dir() else None)
    with TemporaryDirectory(prefix="muxd-stall-") as root:
        file = Path(root) / "muxd.toml"
        file.write_text(folders(Path(root), tokenizer, given.cores))
        with local_daemon(file) as admin:
            address = urlsplit(admin.status().address)
            rows = uvloop.run(measure(address.hostname or "", address.port or 0, given.seconds, given.only))
            memory = {row.role: row.memory_bytes >> 20 for row in admin.ps()}
    show(rows)
    print(f"tokenizer: {tokenizer.name if tokenizer else 'one token a byte'}; MB at the end: {memory}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
