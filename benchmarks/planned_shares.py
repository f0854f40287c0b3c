"""Shares of a plan against equal ones, for models on one device: what the simulator says of both.

    python benchmarks/planned_shares.py [--seconds 60] [--seed 3]

One H200 by its roofline, lengths about ShareGPT's, Poisson arrivals; each scene idle, busy and crowded.
``beside``: how many times longer a decode step takes beside another model's.
"""

import argparse
from itertools import product

import numpy as np

from muxd.cost.analytic import Roofline
from muxd.cost.peaks import CAPTURED
from muxd.cost.shapes import CATALOGUE
from muxd.placement.live import Live, Room
from muxd.placement.memory import Budget
from muxd.placement.problem import ModelLoad, UnitLoad
from muxd.placement.sets import Sets
from muxd.sim.cluster import Cluster, Terms
from muxd.sim.records import Outcome, Records
from muxd.sim.workload import Item, Workload

DEVICE, MEMORY, POOL = "h200", 141 * 10**9, 30 * 10**9
SCENES = {  # size and requests a second of each model, before the load
    "alike": [("llama-3-8b", 1.0)] * 4,
    "one popular": [("llama-3-8b", rate) for rate in (8.0, 2.0, 0.5, 0.2)],
    "three sizes": [("qwen2.5-14b", 3.0), ("llama-3-8b", 3.0), ("llama-3.2-1b", 6.0)],
    "small popular": [("qwen2.5-14b", 0.3), ("llama-3.2-3b", 6.0), ("llama-3.2-1b", 10.0)],
}
LOADS = (1.0, 3.0, 6.0)
COSTS = Roofline(DEVICE, CATALOGUE, CAPTURED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals")
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    print("| scene | load | planned % | latency equal s | planned s | TTFT p99 equal s | planned s |")
    print("|---|---|---|---|---|---|---|")
    for (scene, sizes), load in product(SCENES.items(), LOADS):
        models = [
            ModelLoad(f"m{i}", size, CATALOGUE[size], rate * load, 161, 337)
            for i, (size, rate) in enumerate(sizes)
        ]
        workload = arrivals(models, args.seconds, args.seed)
        planned, equal = best(models), (max(1, 100 // len(models)),) * len(models)
        both = [simulated(models, shares, workload) for shares in (equal, planned)]
        latency, first = zip(*map(times, both), strict=True)
        print(
            f"| {scene} | {load:g} | {' '.join(map(str, planned))} "
            f"| {latency[0]:.2f} | {latency[1]:.2f} | {first[0]:.2f} | {first[1]:.2f} |",
            flush=True,
        )


def best(models: list[ModelLoad]) -> tuple[int, ...]:
    """The shares of the plan: all models on one device, shares tuned."""
    appraiser = Live(models, Room(1, MEMORY, POOL), COSTS, Budget())
    found = Sets(appraiser).worth(1, tuple(range(len(models))))
    assert found is not None
    return found[1]


def arrivals(models: list[ModelLoad], seconds: float, seed: int) -> Workload:
    draw, items = np.random.default_rng(seed), []
    for model in models:
        for time in draw.uniform(0, seconds, draw.poisson(model.rate * seconds)).tolist():
            items.append(Item(time, model.name, int(draw.integers(20, 300)), int(draw.integers(30, 640))))
    return Workload(sorted(items, key=lambda item: item.time), {"duration": seconds})


def simulated(models: list[ModelLoad], shares: tuple[int, ...], workload: Workload) -> Records:
    many = len(models)
    unit = UnitLoad(
        host=0,
        gpus=(0,),
        degree=1,
        pool_bytes=POOL,
        models=tuple(model.name for model in models),
        rates=tuple(model.rate for model in models),
        prefill_shares=(100,) * many,
        decode_shares=shares,
        quota_weights=(1 / many,) * many,
        batches=(1,) * many,
    )
    return Cluster(models, COSTS, DEVICE).run([unit], workload, Terms()).records


def times(records: Records) -> tuple[float, float]:
    """Mean latency and the 99th percentile of the time to the first token, in seconds, of what was served."""
    served = records.outcome == Outcome.SERVED
    latency, first = (records.end - records.sent)[served], (records.first - records.sent)[served]
    return float(latency.mean()), float(np.quantile(first, 0.99))


if __name__ == "__main__":
    main()
