"""Twelve models in memory for four, beside llama.cpp's router: the same files, requests and cores, in turns.

    python benchmarks/peers/many.py FOLDER [--rounds 2] [--seconds 40] [--rate 1.0] [--json FILE]

FOLDER is what ``llama_build.py`` has made; its 4-bit files are served under twelve names, eight times the
one and four times the other model, each with weights of its own. Power-law popularity (alpha 1.5) whose
favourites change half-way. muxd has device memory for its pool and four models of middling size, and host
memory for six more, or for none; the router holds four. All files are in the page cache. Two minutes a
server.
"""

import asyncio
import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
from msgspec import Struct

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llama_build import VERSION
from peer_servers import Serving, muxd, router
from provenance import machine
from residency_live import workload
from sittings import arguments, in_turns, keep

from muxd.device.cpu import Cpu
from muxd.importer.convert import import_gguf
from muxd.importer.progress import Silent
from muxd.sim.records import Outcome
from muxd.sim.replay import Replay

COPIES = {"smol": 8, "gemma": 4}
MOST, PARKED = 4, 6  # in memory; in muxd's host memory
POOL, MB = 256 << 20, 1 << 20
HOSTED, FILES, ROUTER = "muxd, host memory for 6 more", "muxd, no host memory", "llama.cpp's router"


class Crowd(Struct):
    """One server in one round. ``within``: of all asked, the part with a first token in 1, 2 and 5 s; first
    tokens in seconds, None: there was none; ``memory``: bytes at the end (PSS)."""

    round: int
    server: str
    asked: int
    served: int
    within: tuple[float, float, float]
    first_p50: float | None
    first_p99: float | None
    memory: int


class Crowds(Struct):
    provenance: dict[str, str]
    rate: float
    seconds: float
    found: list[Crowd] = []


def settings(mean: int, parked: int) -> str:
    """``mean``: bytes of a model's weights."""
    memory = POOL + MOST * mean + 64 * MB
    return (
        f'[[device]]\nname = "cpu:0"\npool = "{POOL}"\nmemory = "{memory}"\n'
        f'[residency]\nhost_memory = "{parked * mean}"\n'
    )


def servers(folder: Path, scratch: Path) -> dict[str, Callable[[], AbstractContextManager[Serving]]]:
    files, folders = dict[str, Path](), dict[str, Path]()
    for kind, copies in COPIES.items():
        file = folder / "models" / f"{kind}-file.gguf"
        import_gguf(file, scratch / kind, progress=Silent(), weights="file")
        files |= {f"{kind}-{i}": file for i in range(copies)}
        folders |= {f"{kind}-{i}": scratch / kind for i in range(copies)}
    mean = sum(file.stat().st_size for file in files.values()) // len(files)

    def routed() -> AbstractContextManager[Serving]:
        return router(folder / "bin/llama-server", Path(mkdtemp(dir=scratch)), files, MOST)

    return {
        HOSTED: partial(muxd, scratch, folders, settings(mean, PARKED)),
        FILES: partial(muxd, scratch, folders, settings(mean, 0)),
        ROUTER: routed,
    }


def crowd(number: int, server: str, serving: Serving, seconds: float, rate: float) -> Crowd:
    work = workload(list(serving.urls), seconds, rate)
    records = asyncio.run(Replay(work, serving.urls, progress=lambda count: None).run())
    served = records.outcome == Outcome.SERVED
    first = np.where(served, records.first - records.sent, np.inf)
    quantiles = (float(np.quantile(first, q, method="higher")) for q in (0.5, 0.99))
    p50, p99 = (one if math.isfinite(one) else None for one in quantiles)
    parts = [float((first <= limit).mean()) for limit in (1.0, 2.0, 5.0)]
    within = (parts[0], parts[1], parts[2])
    return Crowd(number, server, len(first), int(served.sum()), within, p50, p99, serving.memory())


def main() -> None:
    parser = arguments(__doc__, "many.json")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each half")
    parser.add_argument("--rate", type=float, default=1.0)
    given = parser.parse_args()
    found = Crowds({**machine(Cpu()).fields, "llama.cpp": VERSION}, given.rate, given.seconds)
    with TemporaryDirectory(prefix="muxd-many-") as scratch:
        known = servers(given.folder, Path(scratch))
        for number in range(given.rounds):
            for server, start in in_turns(known, number):
                with start() as serving:
                    one = crowd(number, server, serving, given.seconds, given.rate)
                print(one, flush=True)
                found.found.append(one)
                keep(found, given.json)


if __name__ == "__main__":
    main()
