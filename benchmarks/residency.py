"""More models than memory: twenty models of 0.5B to 32B, some 330 GB of weights, on one H200 (simulated).

    python benchmarks/residency.py [--seconds 300] [--seeds 2] [--rate 1.5]

Power-law popularity (rank^-alpha, which model is popular by the seed), bursts (gamma gaps, cv 4), lognormal
prompts of 300 and answers of 150 tokens. The daemon's own scheduler, ledger, waking and order of loads run;
costs are the roofline's. Beside each other: muxd as it was without waking (who does not fit is refused), its
waking from host memory and from disk, the same by least recent use alone, and one server at a time as
llama-swap and as Ollama do. Printed: the part of all requests with a first token within 2, 5 and 10 s.
"""

import argparse
import random
from collections.abc import Callable

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from muxd.config import Config, ModelConfig, PoolConfig
from muxd.cost.analytic import Roofline, rungs
from muxd.cost.peaks import CAPTURED
from muxd.cost.sampled import profile_of
from muxd.cost.shapes import CATALOGUE
from muxd.cost.table import CostTable
from muxd.placement.waking import Rules
from muxd.sim.build import make_scheduler
from muxd.sim.generate import mixed, rates
from muxd.sim.records import Outcome, Records
from muxd.sim.swap import SwapTerms, swap
from muxd.sim.traffic import ModelTraffic
from muxd.sim.waking import SITE, Footprint, Waking
from muxd.sim.workload import Workload
from muxd.sim.world import World

GB = 10**9
SIZES = {"qwen2.5-0.5b": 2, "llama-3.2-1b": 3, "llama-3.2-3b": 2, "qwen2.5-7b": 4, "llama-3-8b": 4,
         "qwen2.5-14b": 4, "qwen2.5-32b": 1}  # fmt: skip
MEMORY, POOL = int(141 * GB * 0.98), 25 * GB
SMALL, LARGE = (
    int(1.2 * GB),
    int(4.0 * GB),
)  # what a model takes beside its weights: the goal, and today's budget
HOST = 512 * GB
LIMITS = (2.0, 5.0, 10.0)  # seconds to the first token
BEST = Rules({SITE: MEMORY - POOL}, HOST, start=0.1, host_rate=50e9, disk_rate=5e9)


class System(Struct, frozen=True):
    """``run`` serves a workload; seconds and bytes a second of a load are in the name."""

    name: str
    run: Callable[[Workload, CostTable, dict[str, int]], Records]


def names() -> dict[str, str]:
    return {f"{size}#{i}": size for size, count in SIZES.items() for i in range(count)}


def config(models: list[str]) -> Config:
    entries = [ModelConfig(name=name, path=name, max_queue=10**6) for name in models]
    return Config(pool=PoolConfig(bytes=str(POOL)), model=entries)


def waking(rules: Rules, fixed: int) -> Callable[[Workload, CostTable, dict[str, int]], Records]:
    def run(workload: Workload, cost: CostTable, weights: dict[str, int]) -> Records:
        sizes = {name: Footprint(nbytes + fixed, nbytes) for name, nbytes in weights.items()}
        return Waking(make_scheduler(config(list(weights)), cost), cost, workload, rules, sizes).run()

    return run


def fitting(fixed: int) -> Callable[[Workload, CostTable, dict[str, int]], Records]:
    """Those that fit together, the most asked for first; the others are refused."""

    def run(workload: Workload, cost: CostTable, weights: dict[str, int]) -> Records:
        asked: dict[str, float] = dict(workload.header["rates"])
        kept, left = [], MEMORY - POOL
        for name in sorted(weights, key=lambda name: -asked[name]):
            if weights[name] + fixed <= left:
                kept.append(name)
                left -= weights[name] + fixed
        items = [item for item in workload.items if item.model in kept]
        part = Workload(items, workload.header)
        return World(make_scheduler(config(kept), cost), cost, part).run()

    return run


def swapping(
    most: int, start: float, rate: float
) -> Callable[[Workload, CostTable, dict[str, int]], Records]:
    def run(workload: Workload, cost: CostTable, weights: dict[str, int]) -> Records:
        terms = SwapTerms(MEMORY - POOL, most, rate, start)
        policy = swap({name: nbytes + SMALL for name, nbytes in weights.items()}, terms)
        return World(make_scheduler(config(list(weights)), cost, policy), cost, workload).run()

    return run


SYSTEMS = [
    System("muxd, waking, 0.1 s + 50 GB/s, 1.2 GB a model", waking(BEST, SMALL)),
    System("the same, least recently used leaves", waking(replace(BEST, kind="lru"), SMALL)),
    System("muxd, waking, 0.2 s + 25 GB/s, 4.0 GB a model",
           waking(replace(BEST, start=0.2, host_rate=25e9), LARGE)),
    System("muxd, waking from disk, 3 s + 5 GB/s", waking(replace(BEST, start=3.0, host=0), SMALL)),
    System("muxd without waking, 1.2 GB a model", fitting(SMALL)),
    System("muxd without waking, 4.0 GB a model", fitting(LARGE)),
    System("as vLLM's sleep mode: LRU, 0.3 s + 25 GB/s, one computes", swapping(0, 0.3, 25e9)),
    System("as Ollama: LRU, 1 s + 5 GB/s, one computes", swapping(0, 1.0, 5e9)),
    System("as llama-swap: one at a time, 10 s + 5 GB/s", swapping(1, 10.0, 5e9)),
]  # fmt: skip


def workload(seconds: float, rate: float, alpha: float, seed: int) -> Workload:
    order = list(names())
    random.Random(seed).shuffle(order)
    by_model = rates(order, rate, alpha)
    traffic = [
        ModelTraffic(name, by_model[name], "lognormal:300,150", cv=4.0) for name in order if by_model[name]
    ]
    return mixed(traffic, seconds, seed=seed)


def within(records: Records, count: int) -> list[float]:
    """Percent of ``count`` requests whose first token came in time; refused ones had none."""
    waited = np.where(records.outcome == Outcome.SERVED, records.first - records.sent, np.inf)
    return [100 * float((waited <= limit).sum()) / count for limit in LIMITS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--rate", type=float, default=1.5, help="requests a second of all models")
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    models = names()
    shapes = {size: CATALOGUE[size] for size in SIZES}
    roofline = Roofline("h200", {name: shapes[size] for name, size in models.items()}, CAPTURED)
    named = {name: (name, 1) for name in models}
    by_name = {name: shapes[size] for name, size in models.items()}
    cost = CostTable(profile_of(roofline, "h200", named, shapes=by_name, rungs=rungs(), gpu=True))
    weights = {name: shapes[size].weight_bytes() for name, size in models.items()}
    print(f"{len(models)} models, {sum(weights.values()) / GB:.0f} GB of weights")
    print("| system | alpha | TTFT within 2 / 5 / 10 s, % |\n|---|---|---|")
    for system in SYSTEMS:
        for alpha in (1.2, 0.7):
            found = []
            for seed in range(asked.seeds):
                work = workload(asked.seconds, asked.rate, alpha, seed)
                found.append(within(system.run(work, cost, weights), len(work.items)))
            mean = np.mean(found, axis=0)
            print(f"| {system.name} | {alpha} | {' / '.join(f'{value:.0f}' for value in mean)} |", flush=True)


if __name__ == "__main__":
    main()
