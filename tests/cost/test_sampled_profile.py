"""Any costs as a profile: the simulator then runs a published experiment from end to end."""

from pathlib import Path

import pytest
from msgspec.structs import replace
from support.published import REAL, needs_real, published, raw_table

from muxd.config import Config, ModelConfig, PoolConfig
from muxd.cost.analytic import Roofline
from muxd.cost.peaks import CAPTURED
from muxd.cost.profile import check, load, save
from muxd.cost.published import Published
from muxd.cost.sampled import profile_of
from muxd.cost.shapes import known
from muxd.cost.table import CostTable
from muxd.errors import ConfigError
from muxd.sim.build import make_scheduler
from muxd.sim.records import Outcome
from muxd.sim.workload import Item, Workload
from muxd.sim.world import World


def test_the_grid_holds_what_the_costs_say(tmp_path: Path) -> None:
    costs = published(tmp_path, raw_table(gpus=2))
    profile = profile_of(costs, "A100-80G", {"chat": ("llama-7b", 2)})
    save(tmp_path / "cost.json", profile)
    table = CostTable(load(tmp_path / "cost.json"))
    assert profile.device.rungs == [30, 60, 100]
    for share in (30, 60, 100):
        for batch in (1, 2, 4, 8):
            for context in (32, 64, 128):
                expected = costs.decode("llama-7b", 2, share, batch, context).seconds
                assert table.decode("chat", batch, context, share) == pytest.approx(expected)
        assert table.prefill("chat", 128, 0, share) == costs.prefill("llama-7b", 2, share, 1, 128).seconds


def test_each_device_holds_its_part_of_the_heads() -> None:
    costs = Roofline("h200")
    models = {"large": ("llama-3-70b", 4), "small": ("qwen2.5-0.5b", 1)}
    profile = profile_of(costs, "H200", models, dtype="float16", rungs=[25, 50, 100], gpu=True)
    large, small = profile.models["large"], profile.models["small"]
    assert (large.shape.layers, large.shape.kv_heads, large.shape.head_dim) == (80, 2, 128)
    assert small.shape == known("qwen2.5-0.5b").on(1, "float16")
    assert large.weight_bytes == round(costs.reading("llama-3-70b", 4).weights)
    assert profile.device.gpu
    assert profile.device.rungs == [25, 50, 100]
    assert profile.device.memory == costs.memory
    assert large.measured == "roofline 100%: llama-3-70b on 4 x H200"
    assert max(large.decode.contexts) <= large.shape.max_positions


def test_a_chunk_after_a_long_context_costs_the_end_of_a_prompt() -> None:
    """With launches in graphs nothing hides the attention to what came before."""
    costs = Roofline("h200", reach=replace(CAPTURED, batch=0.0))
    table = CostTable(profile_of(costs, "H200", {"m": ("llama-3-8b", 1)}))
    late = table.prefill("m", 512, 4096, 100)
    whole = costs.prefill("llama-3-8b", 1, 100, 1, 4608).seconds
    before = costs.prefill("llama-3-8b", 1, 100, 1, 4096).seconds
    assert late == pytest.approx(whole - before)
    assert late > table.prefill("m", 512, 0, 100)


def test_own_shapes_and_refusals(tmp_path: Path) -> None:
    shape = replace(known("llama-7b"), layers=3)
    costs = Roofline("l40s", {"mine": shape})
    profile = profile_of(costs, "L40S", {"m": ("mine", 2)}, shapes={"mine": shape})
    assert profile.models["m"].shape.layers == 3
    check(profile.models["m"].prefill, "prefill")
    with pytest.raises(ConfigError, match="no model 'mine' in the catalogue"):
        profile_of(costs, "L40S", {"m": ("mine", 2)})
    with pytest.raises(ConfigError, match="on 3 GPUs, only on 1, 2, 4, 8"):
        profile_of(costs, "L40S", {"m": ("mine", 3)}, shapes={"mine": shape})
    with pytest.raises(ConfigError, match="no share that all of them"):
        profile_of(costs, "L40S", {})


def simulate(costs: Roofline | Published, models: dict[str, tuple[str, int]]) -> list[float]:
    """Latencies in seconds of ten prompts of 128 tokens a model, 32 tokens of answer, one a second."""
    cost = CostTable(profile_of(costs, "A100-80G", models))
    entries = [ModelConfig(name, name, share=50) for name in models]
    items = [Item(float(i), name, 128, 32) for i in range(10) for name in models]
    workload = Workload(items, {})
    scheduler = make_scheduler(Config(pool=PoolConfig("8G"), model=entries), cost)
    records = World(scheduler, cost, workload).run()
    assert (records.outcome == Outcome.SERVED).all()
    return [end - item.time for end, item in zip(records.end, items, strict=True)]


MODELS = {"llm-1": ("llama-13b", 4), "llm-2": ("llama-7b", 4)}


def test_it_runs_in_the_simulator() -> None:
    """A 13B needs longer than a 7B; nobody is faster than the device alone."""
    costs = Roofline("A100-80G")
    took = simulate(costs, MODELS)
    assert min(took[1::2]) >= 31 * costs.decode("llama-7b", 4, 100, 1, 128).seconds
    assert sum(took[::2]) > sum(took[1::2])


@needs_real
def test_the_published_table_runs_in_the_simulator() -> None:
    costs = Published.read(REAL)
    took = simulate(costs, MODELS)
    alone = [
        costs.prefill(model, gpus, 100, 1, 128).seconds + 31 * costs.decode(model, gpus, 100, 1, 144).seconds
        for model, gpus in MODELS.values()
    ]
    assert all(seconds > 0.95 * alone[i % 2] for i, seconds in enumerate(took))
    assert max(took) < 3 * max(alone), "two models at half the device each"
