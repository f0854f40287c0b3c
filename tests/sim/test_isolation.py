"""A quiet model beside a flood keeps its pace, and without guarantees it would not; the same live is
benchmarks/isolation.py."""

import numpy as np
import pytest
from support.costs import model, table

from muxd.config import Config, ModelConfig, PoolConfig, QuotaConfig, SchedulerConfig
from muxd.sim.build import make_scheduler
from muxd.sim.generate import Recipe, generate
from muxd.sim.records import Records
from muxd.sim.workload import Workload
from muxd.sim.world import World

SECONDS = 120.0
COST = table(quiet=model(prefill=0.001, decode=0.012), flood=model(prefill=0.001, decode=0.012))
QUIET = generate(Recipe(["quiet"], 0.5, SECONDS, lengths="uniform:160-256,16-32", seed=1))
# Three times what the device can do, in a pool for half of the sequences it may run.
FLOOD = generate(Recipe(["flood"], 12.0, SECONDS, lengths="uniform:64-160,120-240", seed=2))
BOTH = Workload(sorted(QUIET.items + FLOOD.items, key=lambda item: item.time), {})


def config(quiet: QuotaConfig, *, share: int) -> Config:
    models = [
        ModelConfig("quiet", "quiet", share=share, quota=quiet),
        ModelConfig("flood", "flood", share=50, max_running=64),
    ]
    scheduler = SchedulerConfig(prefill_tokens=128, drain_timeout=0.1)
    return Config(pool=PoolConfig("4M"), scheduler=scheduler, model=models)


GUARANTEED = config(QuotaConfig(min="25%"), share=100)
NOTHING = config(QuotaConfig(min="0", weight=0.001), share=1)


def run(workload: Workload, settings: Config, policy: str = "mux") -> Records:
    return World(make_scheduler(settings, COST, policy), COST, workload).run()


def ttft99(records: Records, name: str = "quiet") -> float:
    waits = [
        first - item.time
        for item, first in zip(records.workload.items, records.first, strict=True)
        if item.model == name
    ]
    assert not np.isnan(waits).any(), "every quiet request is served"
    return float(np.quantile(waits, 0.99))


def test_a_guaranteed_quiet_model_keeps_its_time_to_first_token_beside_a_flood() -> None:
    alone, beside = run(QUIET, GUARANTEED), run(BOTH, GUARANTEED)
    print(f"TTFT p99: {ttft99(alone):.3f} s alone, {ttft99(beside):.3f} s beside a flood")
    assert ttft99(beside) <= 2 * ttft99(alone)


@pytest.mark.parametrize("policy", ["mux", "temporal", "fcfs", "round_robin"])
def test_without_guarantees_it_does_not(policy: str) -> None:
    alone, beside = run(QUIET, NOTHING, policy), run(BOTH, NOTHING, policy)
    print(f"{policy}: TTFT p99 {ttft99(alone):.3f} s alone, {ttft99(beside):.3f} s beside a flood")
    assert ttft99(beside) > 2 * ttft99(alone)


def test_long_prompts_next_door_leave_a_chatty_model_its_pace() -> None:
    """engine/design.md: d + P + (M + 2) D between two tokens; TPOT is a mean of such gaps."""
    chatty = generate(Recipe(["quiet"], 2.0, SECONDS, lengths="uniform:16-32,60-100", seed=3))
    prompts = generate(Recipe(["flood"], 1.0, SECONDS, lengths="uniform:1500-3000,1-4", seed=4))
    both = Workload(sorted(chatty.items + prompts.items, key=lambda item: item.time), {})
    settings = config(QuotaConfig(min="25%"), share=50)
    records = run(both, settings)
    mine = np.array([item.model == "quiet" for item in both.items])
    tokens = np.array([item.output_tokens for item in both.items])
    tpot = ((records.end - records.first) / (tokens - 1).clip(1))[mine]
    prefill, step = 128 * 0.001 * 2, 0.012 * 2  # at half the device
    bound = settings.scheduler.drain_timeout + prefill + (2 + 2) * step
    print(f"TPOT p99 {np.nanquantile(tpot, 0.99):.3f} s, bound {bound:.3f} s")
    assert np.nanquantile(tpot, 0.99) <= bound
    assert np.nanquantile(tpot, 0.99) <= 4 * step
