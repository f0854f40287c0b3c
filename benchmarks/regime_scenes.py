"""The scenes of ``regime.py``: three to ten models on one GPU, as people have them; rates, lengths, systems.

Costs are the roofline's with graphs (``muxd.cost.peaks.CAPTURED``) and the one law of the device; the
daemon's own scheduler and ledger run. Static slices (``spatial``) have every percent of the device, as MPS
gives them, all others the four parts in which the daemon divides a GPU.
"""

from collections.abc import Sequence
from functools import cache
from math import inf

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from muxd.config import Config, ModelConfig, PoolConfig, SchedulerConfig
from muxd.cost.analytic import Roofline, rungs
from muxd.cost.peaks import CAPTURED
from muxd.cost.sampled import profile_of
from muxd.cost.shapes import CATALOGUE
from muxd.cost.table import CostTable
from muxd.engine.policies import Policy
from muxd.sim.build import make_scheduler
from muxd.sim.generate import arrivals
from muxd.sim.lengths import lognormal
from muxd.sim.records import Outcome, Records
from muxd.sim.swap import SwapTerms, swap
from muxd.sim.workload import Item, Workload
from muxd.sim.world import World

GB = 10**9
MEMORY = {"h100": 80 * GB, "h200": 141 * GB}
PROMPT, ANSWER = 300, 150  # tokens, means
TTFT, TPOT = 2.0, 0.1  # seconds, for people who read
TIMES = 5.0  # the latency alone
PERCENT = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 25, 33, 50, 75, 100)  # where shares of MPS are sampled
POOL = 24 * GB  # more is never used here, and only costs time
MANY = 10**6  # nobody is refused


class Scene(Struct, frozen=True):
    """``models``: name -> size, the most popular first. ``prompts``: means that differ."""

    key: str
    about: str
    device: str
    models: dict[str, str]
    rates: tuple[float, ...]
    alpha: float = 0.9
    cv: float = 1.0
    prompts: dict[str, int] = {}


def _named(*sizes: str) -> dict[str, str]:
    return {f"{number}-{size}": size for number, size in enumerate(sizes)}


def _ladder(low: float, high: float, step: float = 1.15) -> tuple[float, ...]:
    rates = [low]
    while rates[-1] < high:
        rates.append(round(rates[-1] * step, 2))
    return tuple(rates)


MIX = ("llama-3-8b", "qwen2.5-0.5b", "llama-3.2-3b", "qwen2.5-7b", "llama-3.2-1b", "qwen2.5-14b",
       "qwen2.5-1.5b", "llama-3.2-3b", "qwen3-0.6b", "qwen2.5-1.5b")  # fmt: skip
SCENES = [
    Scene("A", "0.5B, 1B, 3B, 7B on an H100", "h100",
          _named("qwen2.5-0.5b", "llama-3.2-1b", "llama-3.2-3b", "qwen2.5-7b"), _ladder(5, 260)),
    Scene("B", "3 x 8B on an H200", "h200", _named(*["llama-3-8b"] * 3), _ladder(5, 150)),
    Scene("C", "10 of 0.5B to 14B on an H200, bursts (cv 4)", "h200", _named(*MIX), _ladder(1, 90), cv=4.0),
    Scene("D", "32B, 7B, 1B on an H200", "h200",
          _named("llama-3.2-1b", "qwen2.5-7b", "qwen2.5-32b"), _ladder(2, 110)),
    Scene("E", "14B with prompts of 4k, 3B and 1B chat on an H100", "h100",
          {"chat3": "llama-3.2-3b", "chat1": "llama-3.2-1b", "rag14": "qwen2.5-14b"}, _ladder(1, 30),
          alpha=0.7, prompts={"rag14": 4000}),
]  # fmt: skip


@cache
def costs(key: str, percents: bool) -> CostTable:
    """Of the scene's models. ``percents``: a device that gives any percent, as MPS does."""
    scene = next(scene for scene in SCENES if scene.key == key)
    roofline = Roofline(
        scene.device, {name: CATALOGUE[size] for name, size in scene.models.items()}, CAPTURED
    )
    named = {name: (name, 1) for name in scene.models}
    shapes = {name: CATALOGUE[size] for name, size in scene.models.items()}
    return CostTable(
        profile_of(
            roofline, scene.device, named, shapes=shapes, rungs=PERCENT if percents else rungs(), gpu=True
        )
    )


def workload(scene: Scene, rate: float, seconds: float, seed: int) -> Workload:
    """Rates by a power law over the models; lognormal lengths."""
    weights = np.arange(1.0, len(scene.models) + 1) ** -scene.alpha
    items = []
    for index, (model, part) in enumerate(zip(scene.models, weights / weights.sum(), strict=True)):
        random = np.random.default_rng([seed, index])
        times = arrivals(random, rate * float(part), seconds, scene.cv)
        mean = scene.prompts.get(model, PROMPT)
        prompts = lognormal(mean, most=4 * mean)(random, len(times))
        answers = lognormal(ANSWER, most=2048)(random, len(times))
        columns = zip(times.tolist(), prompts.tolist(), answers.tolist(), strict=True)
        items += [Item(time, model, prompt, answer) for time, prompt, answer in columns]
    return Workload(sorted(items, key=lambda item: item.time), {"duration": seconds})


def config(scene: Scene, policy: str) -> Config:
    """One setting for all scenes: the defaults."""
    weights = sum(CATALOGUE[size].weight_bytes() for size in scene.models.values())
    left = int(0.95 * MEMORY[scene.device]) - weights - len(scene.models) * GB
    pool = min(max(2 * GB, left), POOL)
    models = [
        ModelConfig(name, name, max_running=128, max_queue=MANY, prefix_cache=False) for name in scene.models
    ]
    scheduler = SchedulerConfig(split_phases="no" if policy == "spatial" else "auto")
    return Config(pool=PoolConfig(str(pool)), scheduler=scheduler, model=models)


def swapping(scene: Scene, policy: str) -> type[Policy]:
    weights = {name: CATALOGUE[size].weight_bytes() for name, size in scene.models.items()}
    return swap(weights, SwapTerms(0.8 * MEMORY[scene.device], most=1 if policy == "swap-one" else 0))


class Kept(Struct, frozen=True):
    """Of one run: requests, those within ``TIMES`` of their latency alone, those within ``TTFT`` and
    ``TPOT``, the worst model's part of each, served in the window a second, the scheduler's decisions."""

    requests: int
    relative: int
    absolute: int
    worst: tuple[float, float]
    in_window: float
    decisions: int
    preemptions: int


def run(scene: Scene, policy: str, rate: float, seconds: float, seed: int) -> Kept:
    """``policy``: of the engine, or ``swap`` (what fits stays in memory), or ``swap-one`` (one model at a
    time)."""
    cost = costs(scene.key, policy == "spatial")
    made = workload(scene, rate, seconds, seed)
    kind = swapping(scene, policy) if policy.startswith("swap") else policy
    world = World(make_scheduler(config(scene, policy), cost, kind), cost, made)
    return kept(world.run(), made, cost, world.events)


def kept(records: Records, made: Workload, cost: CostTable, decisions: int) -> Kept:
    items = made.items
    alone = np.array([_alone(cost, item) for item in items])
    answers = np.array([item.output_tokens for item in items])
    served = records.outcome == Outcome.SERVED
    latency = np.where(served, records.end - records.sent, inf)
    tpot = (records.end - records.first) / np.maximum(1, answers - 1)
    relative = latency <= TIMES * alone
    absolute = served & (records.first - records.sent <= TTFT) & (tpot <= TPOT)
    names = np.array([item.model for item in items])
    window = made.duration or 1.0
    return Kept(
        requests=len(items),
        relative=int(relative.sum()),
        absolute=int(absolute.sum()),
        worst=(_worst(relative, names), _worst(absolute, names)),
        in_window=float((served & (records.end <= window)).sum()) / window,
        decisions=decisions,
        preemptions=records.preemptions,
    )


def _worst(fine: NDArray[np.bool_], names: NDArray[np.str_]) -> float:
    return min(float(fine[names == name].mean()) for name in set(names.tolist()))


_KNOWN: dict[tuple[int, str, int, int], float] = {}


def _alone(cost: CostTable, item: Item) -> float:
    key = id(cost), item.model, item.prompt_tokens, item.output_tokens
    if key not in _KNOWN:
        _KNOWN[key] = cost.alone(*key[1:])
    return _KNOWN[key]


def pooled(runs: Sequence[Kept]) -> tuple[float, float]:
    """Parts within the relative and the absolute target, of all seeds' requests together."""
    requests = sum(run.requests for run in runs)
    return sum(run.relative for run in runs) / requests, sum(run.absolute for run in runs) / requests
