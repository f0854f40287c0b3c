"""What a stream pays while another model is loaded or wakes beside it, and how long those take.

    python benchmarks/load_beside.py [--rounds 8] [--seconds 4] [--steps native torch] [--trace]

One daemon, the two demo models: one streams without end; the other is loaded (from the page cache, with a
tokenizer that nobody has seen: its file is another each time), put to sleep and asked for (its weights parked
in host memory), again and again. Quiet seconds and seconds beside a load take turns, so what the machine does
besides is in both; how many cores that takes is printed. Printed for each step: gaps between tokens of the
stream in ms, by what the load was at; how much later a first token comes where the model has to wake.
Before, with nothing streaming: what a load moves in GB/s beside plain copies of as much. With ``--trace``
every gap that is longer than usual is put down to the part of the load that was under way, and to who ran and
who waited for a core (``gap_trace.py``).
"""

import argparse
import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx2 as httpx
import numpy as np
from gap_trace import Trace

from muxd.admin.client import AdminClient
from muxd.admin.schemas import LoadModel, SleepModel, UnloadModel
from muxd.cli.local_daemon import local_daemon
from muxd.config import home
from muxd.device.cpu import CpuRegion
from muxd.models.packing import packing_for
from muxd.models.spec import read_spec
from muxd.models.weights import fill, plan

STREAMS, LOADED = "smollm2-135m-instruct", "gemma3-270m"
WARM = 30  # tokens before anything is measured
TOKENS = 1500  # of an answer of the stream
PASSES = 5  # of a copy; the best counts
_TICKS = os.sysconf("SC_CLK_TCK")


def fresh(folder: Path, number: int) -> Path:
    """The model to load; its tokenizer is no other's."""
    own = folder / LOADED
    own.mkdir(exist_ok=True)
    for file in (home() / "models" / LOADED).iterdir():
        if file.name == "tokenizer.json":
            (own / file.name).write_bytes(file.read_bytes() + b"\n" * number)
        elif not (own / file.name).exists():
            shutil.copy(file, own)
    return own


def config(folder: Path, step: str) -> Path:
    text = '[pool]\nbytes = "512M"\n[residency]\nleast = 0.1\n' + "".join(
        f'[[model]]\nname = "{name}"\npath = "{path}"\ncpu_step = "{step}"\n'
        for name, path in ((STREAMS, home() / "models" / STREAMS), (LOADED, fresh(folder, 0)))
    )
    path = folder / f"{step}.toml"
    path.write_text(text)
    return path


class Stream:
    """Answers one after another: when each token came."""

    def __init__(self, url: str, trace: Trace | None = None):
        self.times: list[float] = []
        self.warm = asyncio.Event()
        self._url, self._trace = url, trace

    async def run(self) -> None:
        body = {"model": STREAMS, "prompt": "Once", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
        async with httpx.AsyncClient(timeout=None) as client:
            while True:
                async with client.stream("POST", f"{self._url}/v1/completions", json=body) as answer:
                    async for line in answer.aiter_lines():
                        if line.startswith("data: {"):
                            self.times.append(time.perf_counter())
                            if self._trace is not None:
                                self._trace.token(self.times[-1])
                        if len(self.times) == WARM:
                            self.warm.set()

    def gaps(self, spans: Sequence[tuple[float, float]]) -> np.ndarray:
        """Milliseconds between tokens, of those gaps that begin in these spans: a stall belongs to where it
        began."""
        found = [
            1e3 * (after - before)
            for before, after in pairwise(self.times)
            if any(begin <= before <= end for begin, end in spans)
        ]
        return np.array(found)


class Spans:
    """``with spans.take(what)``: what happened when, and how many cores others had meanwhile."""

    def __init__(self) -> None:
        self.all: dict[str, list[tuple[float, float]]] = {}
        self.others: dict[str, list[float]] = {}

    @contextmanager
    def take(self, what: str) -> Iterator[None]:
        begin, busy = time.perf_counter(), _busy() - _spent()
        try:
            yield
        finally:
            end = time.perf_counter()
            self.all.setdefault(what, []).append((begin, end))
            others = (_busy() - _spent() - busy) / (end - begin)
            self.others.setdefault(what, []).append(max(0.0, others))

    def seconds(self, what: str) -> float:
        return median(end - begin for begin, end in self.all[what])


def _busy() -> float:
    """Processor seconds that anybody had, here or on the machine below."""
    user, nice, system, _, _, irq, soft, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + soft + steal) / _TICKS


def _spent() -> float:
    """Processor seconds of this process and all below it, those that have ended among them."""
    below: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            pid, fields = int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()
            below.setdefault(int(fields[1]), []).append(pid)
            seconds[pid] = sum(map(int, fields[11:15])) / _TICKS
    found, todo = 0.0, [os.getpid()]
    while todo:
        pid = todo.pop()
        todo += below.get(pid, [])
        found += seconds.get(pid, 0.0)
    return found


def load(admin: AdminClient, spans: Spans) -> None:
    """A whole load, its stages as spans."""
    part, began = "reading", time.perf_counter()
    for step in admin.load(LoadModel(LOADED)):
        now = "weights, process starts" if step.stage == "weights" and not step.done else step.stage
        if now != part:
            spans.all.setdefault(f"load: {part}", []).append((began, time.perf_counter()))
            part, began = now, time.perf_counter()


async def first_token(url: str) -> float:
    """Seconds until the model that is loaded has said one."""
    body = {"model": LOADED, "prompt": "Once upon a time", "max_tokens": 1}
    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=None) as client:
        (await client.post(f"{url}/v1/completions", json=body)).raise_for_status()
    return time.perf_counter() - began


def rates() -> dict[str, object]:
    """GB/s: of a load's reading and packing into new memory, and of plain copies of as many bytes, into
    memory that is there and into such new memory. The best of some passes: others only make one slower."""
    folder = home() / "models" / LOADED
    layout = plan(folder, read_spec(folder), None, packing=packing_for("file", "auto", None, gpu=False))
    source = np.ones(layout.bytes, dtype=np.uint8)
    there = np.ones(layout.bytes, dtype=np.uint8)

    def best(work: Callable[[CpuRegion], None], *, passes: int = PASSES) -> float:
        seconds = []
        for _ in range(passes):
            region = CpuRegion(layout.bytes, "weights")
            began = time.perf_counter()
            work(region)
            seconds.append(time.perf_counter() - began)
            region.close()
        return layout.bytes / min(seconds) / 1e9

    def read(region: CpuRegion) -> None:
        with region.writer() as writer:
            fill(layout, writer)

    found = {
        "copy": best(lambda region: np.copyto(there, source)),
        "copy into new memory": best(lambda region: np.copyto(region.array(), source)),
        "load from the page cache": best(read),
    }
    share = found["load from the page cache"] / found["copy into new memory"]
    told: dict[str, object] = {f"{name}, GB/s": round(rate, 2) for name, rate in found.items()}
    return told | {"GB": round(layout.bytes / 1e9, 3), "load / copy into new memory": round(share, 2)}


async def measure(
    admin: AdminClient, folder: Path, rounds: int, seconds: float, *, traced: bool
) -> dict[str, object]:
    status, spans = admin.status(), Spans()
    url, trace = status.address, Trace(status.pid, STREAMS) if traced else None
    stream = Stream(url, trace)
    running = asyncio.create_task(stream.run())
    await stream.warm.wait()
    awake, asleep = [], []
    for number in range(1, rounds + 1):
        await asyncio.to_thread(lambda: list(admin.unload(UnloadModel(LOADED))))
        await asyncio.to_thread(fresh, folder, number)
        with spans.take("quiet"):
            await asyncio.sleep(seconds)
        with spans.take("load"):
            await asyncio.to_thread(load, admin, spans)
        awake += [await first_token(url) for _ in range(3)]
        await asyncio.to_thread(lambda: list(admin.sleep(SleepModel(LOADED, now=True))))
        with spans.take("wake"):
            asleep.append(await first_token(url))
    running.cancel()
    told = {} if trace is None else {"trace": trace.report(spans.all, "quiet")}
    found: dict[str, object] = {what: _gaps(stream.gaps(spans.all[what])) for what in spans.all}
    return found | {
        "cores that others had": {what: round(median(had), 2) for what, had in spans.others.items()},
        "load s": round(spans.seconds("load"), 2),
        "first token s, awake": round(median(awake), 3),
        "first token s, asleep": round(median(asleep), 3),
        **told,
    }


def _gaps(gaps: np.ndarray) -> dict[str, float]:
    if not len(gaps):
        return {"tokens": 0}
    p50, p99 = np.percentile(gaps, [50, 99])
    return {"p50": round(p50, 2), "p99": round(p99, 2), "max": round(gaps.max(), 1), "tokens": len(gaps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0, help="of quiet in each round")
    parser.add_argument("--steps", nargs="+", default=["native", "torch"])
    parser.add_argument("--trace", action="store_true", help="who ran and who waited in each long gap")
    asked = parser.parse_args()
    print(json.dumps(rates(), indent=1), flush=True)
    for step in asked.steps:
        with TemporaryDirectory() as folder, local_daemon(config(Path(folder), step)) as admin:
            found = asyncio.run(measure(admin, Path(folder), asked.rounds, asked.seconds, traced=asked.trace))
            print(json.dumps({"step": step, **found}, indent=1), flush=True)


if __name__ == "__main__":
    main()
