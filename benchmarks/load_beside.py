"""What a stream pays while another model is loaded or wakes beside it, and how long those take.

    python benchmarks/load_beside.py [--rounds 6] [--seconds 4] [--steps native torch]

One daemon, the two demo models: one streams without end, the other is unloaded and loaded (from the page
cache), put to sleep and asked for (its weights parked in host memory), again and again. Quiet seconds and
seconds beside a load take turns, so what the machine does besides is in both. Printed for each step: the
gaps between tokens of the stream in ms, what a load moves in GB/s beside a plain copy of as much, and how
much later a first token comes where the model has to wake.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx2 as httpx
import numpy as np

from muxd.admin.client import AdminClient
from muxd.admin.schemas import LoadModel, SleepModel, UnloadModel
from muxd.cli.local_daemon import local_daemon
from muxd.config import home

STREAMS, LOADED = "smollm2-135m-instruct", "gemma3-270m"
WARM = 30  # tokens before anything is measured
TOKENS = 1500  # of an answer of the stream


def config(folder: Path, step: str) -> Path:
    text = '[pool]\nbytes = "512M"\n[residency]\nleast = 0.1\n' + "".join(
        f'[[model]]\nname = "{name}"\npath = "{home() / "models" / name}"\ncpu_step = "{step}"\n'
        for name in (STREAMS, LOADED)
    )
    path = folder / f"{step}.toml"
    path.write_text(text)
    return path


class Stream:
    """Answers one after another: when each token came."""

    def __init__(self, url: str):
        self.times: list[float] = []
        self.warm = asyncio.Event()
        self._url = url

    async def run(self) -> None:
        body = {"model": STREAMS, "prompt": "Once", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
        async with httpx.AsyncClient(timeout=None) as client:
            while True:
                async with client.stream("POST", f"{self._url}/v1/completions", json=body) as answer:
                    async for line in answer.aiter_lines():
                        if line.startswith("data: {"):
                            self.times.append(time.perf_counter())
                        if len(self.times) == WARM:
                            self.warm.set()

    def gaps(self, spans: Sequence[tuple[float, float]]) -> np.ndarray:
        """Milliseconds between the tokens of these spans."""
        found = [
            1e3 * (after - before)
            for begin, end in spans
            for before, after in pairwise(t for t in self.times if begin <= t <= end)
        ]
        return np.array(found)


class Spans:
    """``with spans.take(what)``: what happened when."""

    def __init__(self) -> None:
        self.all: dict[str, list[tuple[float, float]]] = {}

    @contextmanager
    def take(self, what: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.all.setdefault(what, []).append((begin, time.perf_counter()))

    def seconds(self, what: str) -> float:
        return median(end - begin for begin, end in self.all[what])


def load(admin: AdminClient) -> float:
    """Seconds in which the weights were read, of a whole load."""
    list(admin.unload(UnloadModel(LOADED)))
    began = read = 0.0
    for step in admin.load(LoadModel(LOADED)):
        now = time.perf_counter()
        if step.stage == "weights":
            began = began or now
        elif step.stage == "starting":
            read = read or now
    return read - began


async def first_token(url: str) -> float:
    """Seconds until the model that is loaded has said one."""
    body = {"model": LOADED, "prompt": "Once upon a time", "max_tokens": 1}
    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=None) as client:
        (await client.post(f"{url}/v1/completions", json=body)).raise_for_status()
    return time.perf_counter() - began


def copy_rate(nbytes: int) -> float:
    """Bytes a second of a plain copy into memory that is new."""
    source = np.ones(nbytes, dtype=np.uint8)
    began = time.perf_counter()
    np.copyto(np.empty(nbytes, dtype=np.uint8), source)
    return nbytes / (time.perf_counter() - began)


async def measure(admin: AdminClient, rounds: int, seconds: float) -> dict[str, object]:
    url, spans = admin.status().address, Spans()
    stream = Stream(url)
    running = asyncio.create_task(stream.run())
    await stream.warm.wait()
    size = sum(file.stat().st_size for file in (home() / "models" / LOADED).glob("*.safetensors"))
    reads, copies, awake, asleep = [], [], [], []
    for _ in range(rounds):
        with spans.take("quiet"):
            await asyncio.sleep(seconds)
        with spans.take("load"):
            reads.append(await asyncio.to_thread(load, admin))
        copies.append(await asyncio.to_thread(copy_rate, size))
        awake += [await first_token(url) for _ in range(3)]
        await asyncio.to_thread(lambda: list(admin.sleep(SleepModel(LOADED, now=True))))
        with spans.take("wake"):
            asleep.append(await first_token(url))
    running.cancel()
    found: dict[str, object] = {what: _gaps(stream.gaps(spans.all[what])) for what in spans.all}
    return found | {
        "load s": round(spans.seconds("load"), 2),
        "load GB/s": round(size / median(reads) / 1e9, 2),
        "copy GB/s": round(median(copies) / 1e9, 2),
        "first token s, awake": round(median(awake), 3),
        "first token s, asleep": round(median(asleep), 3),
    }


def _gaps(gaps: np.ndarray) -> dict[str, float]:
    p50, p99 = np.percentile(gaps, [50, 99])
    return {"p50": round(p50, 2), "p99": round(p99, 2), "max": round(gaps.max(), 1), "tokens": len(gaps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0, help="of quiet in each round")
    parser.add_argument("--steps", nargs="+", default=["native", "torch"])
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        for step in asked.steps:
            with local_daemon(config(Path(folder), step)) as admin:
                found = asyncio.run(measure(admin, asked.rounds, asked.seconds))
            print(json.dumps({"step": step, **found}, indent=1), flush=True)


if __name__ == "__main__":
    main()
