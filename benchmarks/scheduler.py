"""What a decision costs: microseconds of ``Scheduler.handle`` per decode step, and how that grows.

    python benchmarks/scheduler.py [--policy mux] [--steps 300]

A unit in steady state: ``running`` sequences decode, spread over ``models``; ``waiting`` more find no place.
Every step is one ``BatchDone``: rows, tokens, and the decision what runs next. Tables: more running (should
grow no faster than the batch), more models, models that wait for a share, more waiting (should not grow).
"""

import argparse
import gc
import time

from muxd.cli.tables import render
from muxd.config import Config, ModelConfig, PoolConfig
from muxd.cost.profile import FORMAT, Device, Grid, ModelProfile, Profile, Shape
from muxd.cost.table import CostTable
from muxd.engine.actions import Arrived, BatchDone, Launch, WorkerReady
from muxd.engine.flight import Flight
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.sequence import Sequence
from muxd.messages import Prefill, Sampling
from muxd.sim.build import make_scheduler

_GREEDY = Sampling(temperature=0.0)
_PROMPT = 64
_FINE = list(range(1, 101))  # every model can run at once
_TWO = [50, 100]  # two models at once, as on two cores


def unit(models: int, running: int, rungs: list[int], policy: str) -> Scheduler:
    """Small rows, a pool with room for everybody, so that only decisions are timed."""
    names = [f"llm-{i}" for i in range(models)]
    grid = Grid([100], [1], [0], [[[0.01]]])
    shape = Shape(2, 1, 64, 1 << 20, "bfloat16")
    profile = Profile(FORMAT, Device("bench", 100, rungs), {"m": ModelProfile(shape, grid, grid)})
    per_model = -(-running // models)
    entries = [
        ModelConfig(name, name, share=max(1, 100 // models), max_running=per_model, max_queue=1 << 20)
        for name in names
    ]
    config = Config(pool=PoolConfig(bytes="2G"), model=entries)
    return make_scheduler(config, CostTable(profile, dict.fromkeys(names, "m")), policy)


class Driver:
    """Feeds the scheduler; every batch is done in the order of its launch."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler = scheduler
        self.flying: list[Flight] = []
        self.now = 0.0
        for model in scheduler.lanes:
            self._take(WorkerReady(model))

    def arrive(self, number: int, model: str) -> None:
        # Distinct prompts, so that nothing is found in the prefix cache.
        prompt = [number % 65536, number // 65536] + [7] * (_PROMPT - 2)
        request = Request(str(number), model, prompt, 1 << 19, _GREEDY, frozenset())
        self._take(Arrived(Sequence(number, request, self.now)))

    def step(self) -> tuple[float, int]:
        """The oldest batch ends: seconds of the decision, sequences in the batch (0 for a prefill)."""
        flight = self.flying.pop(0)
        command, model = flight.command, flight.model
        if isinstance(command, Prefill):
            return self._take(BatchDone(model, flight.batch, [5] * sum(c.last for c in command.chunks))), 0
        return self._take(BatchDone(model, flight.batch, [5] * len(command.seqs))), len(command.seqs)

    def _take(self, event: Arrived | BatchDone | WorkerReady) -> float:
        self.now += 0.001
        begun = time.perf_counter()
        actions = self.scheduler.handle(event, self.now)
        took = time.perf_counter() - begun
        self.flying += [action.flight for action in actions if isinstance(action, Launch)]
        return took


def measure(
    models: int, running: int, waiting: int, rungs: list[int], args: argparse.Namespace
) -> tuple[float, float, float]:
    """Mean microseconds a step, the slowest of a hundred, and sequences in its batch."""
    driver = Driver(unit(models, running, rungs, args.policy))
    names = list(driver.scheduler.lanes)
    for number in range(running + waiting):
        driver.arrive(number, names[number % models])
    lanes = driver.scheduler.lanes.values()
    while sum(len(lane.running) for lane in lanes) < running:
        driver.step()
    gc.collect()
    gc.freeze()  # what the set-up left is not the scheduler's
    found = [driver.step() for _ in range(max(args.steps, 2 * models))]
    decodes = [(seconds, batch) for seconds, batch in found if batch]
    times = sorted(seconds for seconds, _ in decodes)
    batch = sum(size for _, size in decodes) / len(decodes)
    return 1e6 * sum(times) / len(times), 1e6 * times[int(0.99 * len(times))], batch


def table(
    title: str, points: list[tuple[int, int, int]], args: argparse.Namespace, rungs: list[int] = _FINE
) -> None:
    rows, first = [], 0.0
    for models, running, waiting in points:
        mean, slow, batch = measure(models, running, waiting, rungs, args)
        first = first or mean
        cells = [str(models), str(running), str(waiting), f"{batch:.1f}", f"{mean:.0f}", f"{slow:.0f}"]
        rows.append([*cells, f"{mean / batch:.2f}", f"{mean / first:.2f}x"])
    heads = ("MODELS", "RUNNING", "WAITING", "BATCH", "US/STEP", "P99", "US/TOKEN", "AGAINST FIRST")
    print(f"{title}\n{render(heads, rows)}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--policy", default="mux")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    running = [(8, n, 0) for n in (8, 32, 128, 512, 2048)]
    table("More that runs: microseconds follow the batch", running, args)
    models = [(n, 2048, 0) for n in (1, 4, 16, 64)]
    table("More models, the same sequences: the batch shrinks, the decision sees more lanes", models, args)
    table("More models, the same batch of 8", [(n, 8 * n, 0) for n in (1, 4, 16, 64)], args)
    title = "The same, but only two models can compute at once"
    table(title, [(n, 8 * n, 0) for n in (1, 4, 16, 64)], args, _TWO)
    waits = [(64, 2048, n) for n in (0, 512, 2048, 8192)]
    table("More that waits: no growth wanted", waits, args)


if __name__ == "__main__":
    main()
