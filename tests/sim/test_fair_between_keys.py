"""Fifty callers of one model, one of whom sends hundreds of requests at once: the others hardly notice. The
same live is benchmarks/fair_keys.py."""

import numpy as np
from support.costs import model, table

from muxd.config import Config, ModelConfig, PoolConfig, SchedulerConfig
from muxd.sim.build import make_scheduler
from muxd.sim.generate import Recipe, generate
from muxd.sim.records import Records
from muxd.sim.workload import Item, Workload
from muxd.sim.world import World

CALLERS, SECONDS, RATE = 49, 80.0, 2.5
COST = table(m=model(prefill=0.0005, decode=0.012))
CONFIG = Config(
    pool=PoolConfig("64M"),
    scheduler=SchedulerConfig(prefill_tokens=256),
    model=[ModelConfig("m", "m", max_running=32, max_queue=600)],
)


def calls() -> Workload:
    """In turn from forty-nine keys."""
    made = generate(Recipe(["m"], RATE, SECONDS, lengths="uniform:64-256,16-64", seed=1)).items
    return Workload([with_key(item, f"caller{i % CALLERS}") for i, item in enumerate(made)], {})


def with_key(item: Item, key: str) -> Item:
    return Item(item.time, item.model, item.prompt_tokens, item.output_tokens, key)


def flooded() -> Workload:
    flood = [Item(10.0, "m", 200, 48, "flood")] * 300
    return Workload(sorted([*calls().items, *flood], key=lambda item: item.time), {})


def run(workload: Workload) -> Records:
    return World(make_scheduler(CONFIG, COST), COST, workload).run()


def ttft99(records: Records, workload: Workload) -> float:
    """Of all but the flood, by who sent it in ``workload``."""
    waits = [
        first - item.time
        for item, first in zip(workload.items, records.first, strict=True)
        if item.key != "flood"
    ]
    assert not np.isnan(waits).any(), "everybody is served"
    return float(np.quantile(waits, 0.99))


def test_one_who_floods_delays_himself() -> None:
    quiet, loud = calls(), flooded()
    nameless = Workload([with_key(item, "") for item in loud.items], {})
    alone, beside, by_arrival = (
        ttft99(run(asked), words) for asked, words in ((quiet, quiet), (loud, loud), (nameless, loud))
    )
    print(f"TTFT p99: {alone:.3f} s alone, {beside:.3f} s beside a flood, {by_arrival:.3f} s by arrival")
    assert beside <= 2 * alone
    assert by_arrival > 20 * alone
