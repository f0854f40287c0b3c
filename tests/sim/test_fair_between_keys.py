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
FLOODED = 200  # tokens of each prompt of the flood
PREFILL, STEP = 0.0005, 0.012  # seconds a token, seconds a step
COST = table(m=model(prefill=PREFILL, decode=STEP))
CONFIG = Config(
    pool=PoolConfig("64M"),
    scheduler=SchedulerConfig(prefill_tokens=256),
    model=[ModelConfig("m", "m", max_running=32, max_queue=600)],
)


def calls(lengths: str = "uniform:64-256,16-64") -> Workload:
    """In turn from forty-nine keys."""
    made = generate(Recipe(["m"], RATE, SECONDS, lengths=lengths, seed=1)).items
    return Workload([with_key(item, f"caller{i % CALLERS}") for i, item in enumerate(made)], {})


def with_key(item: Item, key: str) -> Item:
    return Item(item.time, item.model, item.prompt_tokens, item.output_tokens, key)


def flooded(quiet: Workload) -> Workload:
    flood = [Item(10.0, "m", FLOODED, 48, "flood")] * 300
    return Workload(sorted([*quiet.items, *flood], key=lambda item: item.time), {})


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
    quiet = calls()
    loud = flooded(quiet)
    nameless = Workload([with_key(item, "") for item in loud.items], {})
    alone, beside, by_arrival = (
        ttft99(run(asked), words) for asked, words in ((quiet, quiet), (loud, loud), (nameless, loud))
    )
    print(f"TTFT p99: {alone:.3f} s alone, {beside:.3f} s beside a flood, {by_arrival:.3f} s by arrival")
    assert beside <= 2 * alone
    assert by_arrival > 20 * alone


def test_short_prompts_wait_for_what_is_being_computed_and_for_nothing_else() -> None:
    """Where an answer begins at once alone it waits for a batch of the flood that has begun and for the rest
    of the prompt that this has cut: for no place, and for no other prompts of the flood beside its own."""
    quiet = calls("uniform:8-24,8-24")
    loud = flooded(quiet)
    alone, beside = (ttft99(run(asked), asked) for asked in (quiet, loud))
    begun = (CONFIG.scheduler.prefill_tokens + FLOODED) * PREFILL
    print(f"TTFT p99: {alone:.3f} s alone, {beside:.3f} s beside a flood")
    assert beside <= alone + begun + STEP
