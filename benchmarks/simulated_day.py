"""A million requests to 32 models on eight GPUs, simulated: how long it takes, and where the time goes.

    python benchmarks/simulated_day.py [--requests 1000000] [--rate 90] [--lengths sharegpt] [--policy mux]

32 models of 0.5 to 14 billion parameters on 8 x H100-80G by its roofline, four on each, popularity by
rank^-0.9, bursty arrivals (cv 2), lengths as ShareGPT's. Units know nothing of each other: each is a world,
--processes of them at a time. Decode steps that decide nothing are jumped over; --step-by-step asks the
scheduler for each of them, with the same results. --profile prints the functions that take the time, of one
process.
"""

import argparse
import cProfile
import gc
import os
import pstats
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue

from msgspec import Struct

from muxd.cli.progress import counting
from muxd.config import Config, ModelConfig, PoolConfig
from muxd.cost.analytic import Roofline, rungs
from muxd.cost.peaks import CAPTURED
from muxd.cost.sampled import profile_of
from muxd.cost.shapes import CATALOGUE
from muxd.cost.table import CostTable
from muxd.sim.build import make_scheduler
from muxd.sim.generate import mixed, rates
from muxd.sim.traffic import ModelTraffic
from muxd.sim.workload import Workload
from muxd.sim.world import World

SIZES = ("qwen2.5-0.5b", "llama-3.2-1b", "llama-3.2-3b", "qwen3-0.6b", "qwen2.5-1.5b", "qwen2.5-7b",
         "llama-3-8b", "qwen2.5-14b")  # fmt: skip
MODELS, UNITS = 32, 8
ALPHA, CV = 0.9, 2.0
DEVICE, POOL = "h100", "24G"
TIMES = 5.0  # the latency alone


class Result(Struct, frozen=True):
    """Of one unit. ``seconds`` of the process; ``share``: of the virtual time, how much was computed."""

    requests: int
    tokens: int
    on_time: int
    share: float
    preemptions: int
    events: int
    jumped: int
    seconds: float


def names() -> list[str]:
    """Most popular first."""
    return [f"{rank}-{SIZES[rank % len(SIZES)]}" for rank in range(MODELS)]


def units() -> list[list[str]]:
    """The most popular one with the least popular ones, there and back."""
    found: list[list[str]] = [[] for _ in range(UNITS)]
    for rank, name in enumerate(names()):
        place = rank % (2 * UNITS)
        found[min(place, 2 * UNITS - 1 - place)].append(name)
    return found


def workload(requests: int, rate: float, lengths: str) -> Workload:
    by_model = rates(names(), rate, ALPHA)
    return mixed([ModelTraffic(name, by_model[name], lengths, CV) for name in names()], requests / rate)


def world(models: list[str], policy: str, part: Workload, *, jumps: bool) -> tuple[World, CostTable]:
    shapes = {name: CATALOGUE[name.split("-", 1)[1]] for name in models}
    costs = Roofline(DEVICE, shapes, CAPTURED)
    named = {name: (name, 1) for name in models}
    cost = CostTable(profile_of(costs, DEVICE, named, shapes=shapes, rungs=rungs(), gpu=True))
    entries = [ModelConfig(name, name, max_queue=10**6, prefix_cache=False) for name in models]
    config = Config(pool=PoolConfig(POOL), model=entries)
    return World(make_scheduler(config, cost, policy), cost, part, jumps=jumps), cost


def run(
    unit: int,
    args: argparse.Namespace,
    whole: Workload | None = None,
    told: Callable[[int], None] | None = None,
) -> Result:
    """One unit. The workload is made anew in each process, which is sooner than to send it."""
    models = units()[unit]
    whole = whole or workload(args.requests, args.rate, args.lengths)
    _, part = whole.of(models)
    made, cost = world(models, args.policy, part, jumps=not args.step_by_step)
    gc.collect()
    gc.freeze()
    begun = time.process_time()
    records = made.run(told or _told)
    seconds = time.process_time() - begun
    return Result(
        requests=len(part.items),
        tokens=sum(item.output_tokens for item in part.items),
        on_time=int(records.on_time(cost, TIMES).sum()),
        share=made.device.busy / max(made.clock.now(), 1e-9),
        preemptions=records.preemptions,
        events=made.events,
        jumped=made.jumped,
        seconds=seconds,
    )


# ---- several processes, one bar -----------------------------------------------------------------------

_OVER = -1  # a unit is done, or has failed
_QUEUE: "SimpleQueue[int]"


def _begin(queue: "SimpleQueue[int]") -> None:
    global _QUEUE
    _QUEUE = queue


def _told(requests: int) -> None:
    _QUEUE.put(requests)


@contextmanager
def _asked(args: argparse.Namespace) -> Iterator[tuple[list[Future[Result]], "SimpleQueue[int]"]]:
    context = get_context("spawn")
    queue: SimpleQueue[int] = context.SimpleQueue()
    with ProcessPoolExecutor(args.processes, context, _begin, (queue,)) as pool:
        futures = [pool.submit(run, unit, args) for unit in range(UNITS)]
        for future in futures:
            future.add_done_callback(lambda _: queue.put(_OVER))
        yield futures, queue


def all_units(args: argparse.Namespace) -> list[Result]:
    with counting("Requests", args.requests) as advance:
        if args.processes == 1:
            whole = workload(args.requests, args.rate, args.lengths)
            return [run(unit, args, whole, advance) for unit in range(UNITS)]
        with _asked(args) as (futures, queue):
            over = 0
            while over < UNITS:
                requests = queue.get()
                if requests == _OVER:
                    over += 1
                else:
                    advance(requests)
            return [future.result() for future in futures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=90.0, help="requests a second")
    parser.add_argument("--lengths", default="sharegpt")
    parser.add_argument("--policy", default="mux")
    parser.add_argument("--step-by-step", action="store_true")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    profiler = cProfile.Profile()
    if args.profile:
        args.processes = 1
        profiler.enable()
    begun = time.perf_counter()
    results = all_units(args)
    took = time.perf_counter() - begun
    profiler.disable()
    show(args, results, took)
    if args.profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(40)


def show(args: argparse.Namespace, results: list[Result], took: float) -> None:
    requests, tokens = sum(one.requests for one in results), sum(one.tokens for one in results)
    events, jumped = sum(one.events for one in results), sum(one.jumped for one in results)
    cpu, steps = sum(one.seconds for one in results), max(1, events + jumped)
    on_time = 100 * sum(one.on_time for one in results) / max(1, requests)
    print(f"{requests:,} requests to {MODELS} models, {tokens:,} tokens, {args.rate:g}/s, {args.policy}")
    print(f"{took:.0f} s, {args.processes} processes, {cpu:.0f} s of CPU: {1e6 * cpu / requests:.0f} us each")
    print(f"{events:,} decisions and {jumped:,} steps jumped over ({100 * jumped / steps:.0f} %)")
    print(f"{on_time:.1f} % within {TIMES:g} times the latency alone")
    print(f"{sum(one.preemptions for one in results):,} preemptions")
    print(f"% of the units computed: {', '.join(f'{100 * one.share:.0f}' for one in results)}")


if __name__ == "__main__":
    main()
