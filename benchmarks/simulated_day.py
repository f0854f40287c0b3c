"""A day of a million requests to 32 models, simulated: how long it takes, and where the time goes.

    python benchmarks/simulated_day.py [--requests 1000000] [--lengths lognormal:100,16] [--policy mux]

One H200 by its roofline, models of 0.5 to 8 billion parameters, the small ones most popular (alpha 0.9),
bursty arrivals. Every batch and every token goes through the daemon's scheduler, so the time follows the
number of batches: answers of 16 tokens by default (labels, short completions); --lengths chatlmsys has
sixteen times the tokens. ``--profile`` prints the functions that take it.
"""

import argparse
import cProfile
import gc
import pstats
import time

from muxd.cli.reports import table as shown
from muxd.config import Config, ModelConfig, PoolConfig
from muxd.cost.analytic import device, roofline
from muxd.cost.profile import FORMAT, Profile, Shape
from muxd.cost.table import CostTable
from muxd.sim.build import make_scheduler
from muxd.sim.generate import Recipe, generate
from muxd.sim.report import make_report
from muxd.sim.world import World

DAY = 86_400.0
# Parameters, layers, KV heads, query heads: like Qwen2.5-0.5B, Llama-3.2-1B and -3B, Llama-3.1-8B.
SIZES = [(0.5e9, 24, 2, 14), (1.2e9, 16, 8, 32), (3.2e9, 28, 8, 24), (8.0e9, 32, 8, 32)]
COUNTS = [12, 10, 6, 4]


def models() -> dict[str, str]:
    """Model -> size, most popular first."""
    sizes = [f"size-{i}" for i, count in enumerate(COUNTS) for _ in range(count)]
    return {f"llm-{i}": size for i, size in enumerate(sizes)}


def costs(named: dict[str, str]) -> CostTable:
    profiles = {}
    for i, (parameters, layers, kv_heads, heads) in enumerate(SIZES):
        head_dim = 64 if parameters < 2e9 else 128
        shape = Shape(layers, kv_heads, head_dim, 8192, "bfloat16")
        profiles[f"size-{i}"] = roofline(shape, int(parameters), heads, "h200")
    return CostTable(Profile(FORMAT, device("h200"), profiles), named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=DAY)
    parser.add_argument("--lengths", default="lognormal:100,16")
    parser.add_argument("--policy", default="mux")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    named = models()
    cost = costs(named)
    recipe = Recipe(list(named), args.requests / args.seconds, args.seconds, 0.9, 2.0, args.lengths)
    workload = generate(recipe)
    entries = [ModelConfig(name, name, share=10, max_running=128, max_queue=10_000) for name in named]
    config = Config(pool=PoolConfig(bytes="64G"), model=entries)
    world = World(make_scheduler(config, cost, args.policy), cost, workload)
    gc.collect()
    gc.freeze()
    profiler = cProfile.Profile()
    if args.profile:
        profiler.enable()
    begun = time.perf_counter()
    records = world.run()
    took = time.perf_counter() - begun
    profiler.disable()
    print(shown(make_report(records, kind="simulated", policy=args.policy, cost=cost)))
    tokens = sum(item.output_tokens for item in workload.items)
    print(
        f"\n{len(workload.items):,} requests, {tokens:,} tokens, {world.events:,} decisions of "
        f"{args.seconds / 3600:g} hours in {took:.0f} s: {1e6 * took / world.events:.1f} us a decision"
    )
    if args.profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
