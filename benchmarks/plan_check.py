"""Does a plan keep what it says? 30 models on 8 GPUs planned, written, read again and simulated in bursts.

    python benchmarks/plan_check.py [--seconds 10] [--arrivals 12] [--seeds 3]

30 models of 0.5B to 32B on 8 x H100-80G at 120 requests/s, popularity by rank^-0.9 (which model is popular
is drawn by the seed), prompts 300 and answers 200 tokens on the mean, gamma arrivals with cv 2. Simulated are
the files that `muxctl plan --out` writes, through the daemon's own reader: pool, shares, quotas. The part
within five times the latency alone should be 99 % at least.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

from muxd.cli.planning import Setting, make
from muxd.cli.searching import Patience
from muxd.config import Config, PoolConfig
from muxd.config_load import load
from muxd.cost.analytic import Roofline, rungs
from muxd.cost.peaks import CAPTURED
from muxd.cost.sampled import profile_of
from muxd.cost.shapes import CATALOGUE
from muxd.cost.table import CostTable
from muxd.placement.problem import Gpus, ModelLoad, Plan, Problem
from muxd.placement.settings import files
from muxd.sim.build import make_scheduler
from muxd.sim.generate import mixed, rates
from muxd.sim.traffic import ModelTraffic
from muxd.sim.workload import Workload
from muxd.sim.world import World

SIZES = {"qwen2.5-0.5b": 4, "qwen3-0.6b": 3, "llama-3.2-1b": 4, "qwen2.5-1.5b": 4, "llama-3.2-3b": 4,
         "qwen2.5-7b": 4, "llama-3-8b": 4, "qwen2.5-14b": 2, "qwen2.5-32b": 1}  # fmt: skip
RATE, ALPHA, CV = 120.0, 0.9, 2.0
PROMPT, ANSWER = 300, 200
TIMES = 5.0  # the latency alone
GPUS = Gpus("h100", 80 * 10**9, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the search")
    parser.add_argument("--arrivals", type=float, default=12.0, help="seconds that are simulated")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print("| seed | search s | CPU s | predicted of 120/s | requests | in 5x % | worst model % |")
    print("|---|---|---|---|---|---|---|")
    for seed in range(args.seeds):
        setting = Setting(problem(seed), costs(), rungs())
        wall, cpu = time.perf_counter(), time.process_time()
        plan = make(setting, ["ours"], Patience(args.seconds))[0]["ours"][0]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        on_time = check(plan, setting.problem, args.arrivals, seed)
        count = sum(len(kept) for kept in on_time.values())
        part = sum(sum(kept) for kept in on_time.values()) / count
        worst = min(sum(kept) / len(kept) for kept in on_time.values())
        print(
            f"| {seed} | {wall:.1f} | {cpu:.1f} | {plan.served:.1f} | {count} | {100 * part:.1f} "
            f"| {100 * worst:.0f} |",
            flush=True,
        )


def problem(seed: int) -> Problem:
    sizes = [size for size, count in SIZES.items() for _ in range(count)]
    random.Random(seed).shuffle(sizes)
    names = [f"{number}-{size}" for number, size in enumerate(sizes)]
    wanted = rates(names, RATE, ALPHA)
    models = [
        ModelLoad(name, size, CATALOGUE[size], wanted[name], PROMPT, ANSWER)
        for name, size in zip(names, sizes, strict=True)
    ]
    return Problem(tuple(models), GPUS)


def costs() -> Roofline:
    return Roofline(GPUS.kind, CATALOGUE, CAPTURED)


def check(plan: Plan, planned: Problem, seconds: float, seed: int) -> dict[str, list[bool]]:
    """By model: which of its requests were on time."""
    traffic = [ModelTraffic(m.name, m.rate, f"lognormal:{PROMPT},{ANSWER}", CV) for m in planned.models]
    workload = mixed(traffic, seconds, seed=seed)
    sizes = {model.name: model for model in planned.models}
    found: dict[str, list[bool]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files(plan, planned).items():
            path = Path(folder, name)
            path.write_text(text)
            for unit, gpus in devices(load(path, env={}), plan):
                found |= kept(unit, gpus, sizes, workload)
    return found


def devices(config: Config, plan: Plan) -> list[tuple[Config, int]]:
    """Each device of a file as a daemon of its own, and over how many GPUs its models are."""
    degree = {member.model: unit.degree for unit in plan.units for member in unit.members}
    found = []
    for one in config.devices:
        models = [m for m in config.model if m.device in ("", one.name)]
        own = Config(pool=PoolConfig(one.pool), scheduler=config.scheduler, model=models)
        found.append((own, degree[models[0].name]))
    return found


def kept(config: Config, gpus: int, sizes: dict[str, ModelLoad], workload: Workload) -> dict[str, list[bool]]:
    names = {model.name: (sizes[model.name].cost, gpus) for model in config.model}
    cost = CostTable(profile_of(costs(), GPUS.kind, names, rungs=rungs(), gpu=True))
    _, part = workload.of(names)
    records = World(make_scheduler(config, cost), cost, part).run()
    found: dict[str, list[bool]] = {}
    for item, yes in zip(part.items, records.on_time(cost, TIMES).tolist(), strict=True):
        found.setdefault(item.model, []).append(yes)
    return found


if __name__ == "__main__":
    main()
