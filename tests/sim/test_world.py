"""The unit in virtual time: deterministic, nothing lost, and equal to the cost table where that is simple."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from support.costs import model, table
from support.examples import examples

from muxd.config import Config, ModelConfig, PoolConfig, QuotaConfig, SchedulerConfig
from muxd.cost.law import Memory
from muxd.cost.profile import FORMAT, Device, ModelProfile, Overhead, Profile
from muxd.cost.table import CostTable
from muxd.engine.policies import POLICIES
from muxd.errors import ConfigError
from muxd.sim.build import likenesses, make_scheduler, plain_config
from muxd.sim.generate import Recipe, generate
from muxd.sim.records import Outcome, Records
from muxd.sim.workload import Item, Workload
from muxd.sim.world import World

WEIGHTS = 1_000_000  # bytes
MEMORY = Memory(limit=1.5 * WEIGHTS / 0.01, shares=[50, 100], reached=[WEIGHTS / 0.01] * 2)


def run(workload: Workload, cost: CostTable, config: Config | None = None, policy: str = "mux") -> Records:
    config = config or plain_config(sorted(workload.models))
    return World(make_scheduler(config, cost, policy), cost, workload).run()


def small(*names: str, pool: str = "256K", **settings: Any) -> Config:
    """16 head blocks of 16 KiB... a pool in which sequences get into each other's way."""
    scheduler = SchedulerConfig(prefill_tokens=64, look_ahead=8, drain_timeout=0.05)
    models = [ModelConfig(name, name, **settings) for name in names]
    return Config(pool=PoolConfig(pool), scheduler=scheduler, model=models)


def test_one_stream_takes_what_the_table_says() -> None:
    extra = Overhead(batch=0.002, token=0.0005, request=0.003)
    cost = table(a=model(prefill=0.001, decode=0.01, overhead=extra))
    records = run(Workload([Item(1.0, "a", 100, 11)], {}), cost)
    assert records.first[0] - 1.0 == pytest.approx(0.003 + 0.1 + 0.0025)
    assert records.end[0] - records.first[0] == pytest.approx(10 * 0.0125)
    assert records.end[0] - 1.0 == pytest.approx(cost.alone("a", 100, 11))


def test_a_prompt_above_the_budget_is_computed_in_chunks() -> None:
    cost = table(a=model(prefill=0.001, overhead=Overhead(batch=0.5)))
    by_tokens = structs.replace(plain_config(["a"]), scheduler=SchedulerConfig(prefill_seconds=0.0))
    records = run(Workload([Item(0.0, "a", 1200, 1)], {}), cost, by_tokens)
    assert records.end[0] == pytest.approx(1.2 + 3 * 0.5), "512 + 512 + 176 tokens"


def test_a_prompt_that_takes_long_is_cut_by_what_its_tokens_cost() -> None:
    """A millisecond a token: the first batch tells, and those after it have a fifth of a second."""
    cost = table(a=model(prefill=0.001, overhead=Overhead(batch=0.5)))
    by_time = structs.replace(plain_config(["a"]), scheduler=SchedulerConfig(prefill_seconds=0.4))
    records = run(Workload([Item(0.0, "a", 1000, 1)], {}), cost, by_time)
    # 512 tokens in 1.012 s, so 202 in 0.4 s; those take 0.702 s, which changes little.
    assert records.end[0] == pytest.approx(1.0 + 4 * 0.5)


def test_a_batch_that_costs_much_whatever_its_tokens_is_not_cut_on_and_on() -> None:
    """A prompt of 3,000 before anything else: in the time that is wanted not one token can be computed."""
    cost = table(a=model(prefill=0.0001, overhead=Overhead(batch=0.5)))
    by_time = structs.replace(plain_config(["a"]), scheduler=SchedulerConfig(prefill_seconds=0.1))
    records = run(Workload([Item(0.0, "a", 3000, 1)], {}), cost, by_time)
    assert records.end[0] <= 0.3 + 20 * 0.5


def test_two_models_at_half_the_device_each_take_twice_as_long() -> None:
    cost = table(a=model(prefill=1e-9, decode=0.01), b=model(prefill=1e-9, decode=0.01))
    both = run(Workload([Item(0.0, "a", 4, 101), Item(0.0, "b", 4, 101)], {}), cost)
    assert both.end == pytest.approx([2.0, 2.0], abs=0.05)


def test_shared_memory_makes_neighbours_slower_and_ends_with_them() -> None:
    """Steps that are nothing but reading: together they want one and a half times what the memory has."""
    memory = Memory(
        limit=2 * WEIGHTS / 0.02 / 1.5, shares=[50, 100], reached=[WEIGHTS / 0.02, WEIGHTS / 0.01]
    )
    reading = model(prefill=1e-9, decode=0.01, weights=WEIGHTS)
    cost = table(memory=memory, a=reading, b=reading)
    both = run(Workload([Item(0.0, "a", 4, 101), Item(0.0, "b", 4, 51)], {}), cost)
    # 50 steps of b at half the device and one and a half times as long; then a has all of memory for itself.
    assert both.end[1] == pytest.approx(50 * 0.02 * 1.5, abs=0.1)
    assert both.end[0] == pytest.approx(1.5 + 50 * 0.015, abs=0.15)


@settings(max_examples=examples(25))
@given(st.data())
def test_no_simulation_moves_more_bytes_than_the_device_can(data: st.DataObject) -> None:
    """Whatever the policy, the models and the parts of the device: mean over the whole run."""
    names = ["a", "b", "c", "d"][: data.draw(st.integers(1, 4))]
    gpu, policy = data.draw(st.booleans()), data.draw(st.sampled_from(sorted(POLICIES)))
    sizes = {name: data.draw(st.integers(1, 10)) * WEIGHTS for name in names}
    models = {name: model(1e-5, 0.001 * size / WEIGHTS, weights=size) for name, size in sizes.items()}
    alone = WEIGHTS / 0.001
    limit = alone * data.draw(st.floats(1.0, 2.0))
    cost = table(gpu=gpu, memory=Memory(limit, [50, 100], [alone * 0.8, alone]), **models)
    recipe = Recipe(names, 60.0, 2.0, cv=2.0, lengths="uniform:1-90,1-60", seed=data.draw(st.integers(0, 99)))
    world = World(make_scheduler(small(*names, pool="1M"), cost, policy), cost, generate(recipe))
    world.run()
    assert 0 < world.device.moved <= limit * world.clock.now() * (1 + 1e-6)


workloads = st.builds(
    Recipe,
    models=st.sampled_from([["a"], ["a", "b"], ["c", "a", "b"]]),
    rate=st.floats(0.5, 60),
    duration=st.just(4.0),
    alpha=st.floats(0, 2.5),
    cv=st.floats(0.3, 4),
    lengths=st.sampled_from(["uniform:1-90,1-60", "constant:30,40", "uniform:100-300,1-3"]),
    seed=st.integers(0, 1000),
)


@settings(max_examples=examples(40))
@given(workloads, st.sampled_from(["512K", "1M", "16M"]), st.integers(1, 8), st.integers(1, 40))
def test_every_request_ends_once_and_every_block_returns(
    recipe: Recipe, pool: str, max_running: int, max_queue: int
) -> None:
    workload = generate(recipe)
    cost = table(
        gpu=False, **{name: model(0.0005, 0.01, weights=WEIGHTS) for name in recipe.models}, memory=MEMORY
    )
    config = small(*recipe.models, pool=pool, max_running=max_running, max_queue=max_queue)
    scheduler = make_scheduler(config, cost)
    records = World(scheduler, cost, workload).run()  # which audits the ledger at the end
    outcomes = [Outcome(code) for code in records.outcome]
    assert Outcome.OPEN not in outcomes
    assert Outcome.FAILED not in outcomes
    assert all(use.rows == 0 for use in scheduler.ledger.usage().values())
    assert all(not lane.waiting and not lane.running for lane in scheduler.lanes.values())
    served = records.outcome == Outcome.SERVED
    assert np.isnan(records.first[~served]).all()
    assert (records.sent[served] <= records.first[served]).all()
    outputs = np.array([item.output_tokens for item in workload.items])
    # Each token after the first takes at least one step on the whole device.
    steps = (records.end - records.first)[served]
    assert (steps >= (outputs[served] - 1) * 0.01 - 1e-9).all()


def test_the_same_workload_gives_the_same_times_to_the_last_bit() -> None:
    workload = generate(Recipe(["a", "b", "c"], 40.0, 5.0, cv=2.0, lengths="uniform:1-90,1-60"))
    cost = table(gpu=False, **{name: model(weights=WEIGHTS) for name in workload.models}, memory=MEMORY)
    first, second = (run(workload, cost, small("a", "b", "c", pool="512K")) for _ in range(2))
    assert np.array_equal(first.end, second.end)
    assert np.array_equal(first.first, second.first)
    assert first.preemptions == second.preemptions > 0, "the pool is small enough to matter"


def test_a_full_queue_and_a_request_too_long_are_refused() -> None:
    cost = table(a=model())
    items = [Item(0.0, "a", 10, 5)] * 6 + [Item(1.0, "a", 60, 5000)]
    records = run(Workload(items, {}), cost, small("a", pool="16M", max_queue=3))
    assert [Outcome(code) for code in records.outcome[[0, 5, 6]]] == [
        Outcome.SERVED, Outcome.REFUSED, Outcome.REFUSED,
    ]  # fmt: skip
    assert sorted(records.errors) == [
        "a already has 3 requests waiting; try again later",
        "prompt and answer do not fit the 4096 tokens of a",
    ]


def test_a_model_that_is_not_configured_is_refused() -> None:
    cost = table(a=model(), b=model())
    with pytest.raises(ConfigError, match="asks for b; configured are a"):
        World(make_scheduler(plain_config(["a"]), cost), cost, Workload([Item(0.0, "b", 1, 1)], {}))


def test_a_shared_prefix_is_not_computed_again() -> None:
    cost = table(a=model(prefill=0.001, decode=0.001))
    workload = Workload([Item(0.0, "a", 500, 2), Item(5.0, "a", 500, 2)], {})
    scheduler = make_scheduler(plain_config(["a"]), cost)
    records = World(scheduler, cost, workload, shared_prefix=480).run()
    first, again = records.first - records.sent
    assert first == pytest.approx(0.5)
    if scheduler.ledger.usage()["a"].matched_tokens:  # full rows of 32 tokens
        assert again == pytest.approx(0.02)
    records = run(workload, cost)
    assert records.first - records.sent == pytest.approx([0.5, 0.5]), "distinct prompts share nothing"


def test_rows_and_quotas_are_those_of_the_configuration() -> None:
    cost = table(a=model(), b=model())
    config = Config(
        pool=PoolConfig("1M"),
        model=[
            ModelConfig("a", "a", quota=QuotaConfig(min="25%", max="50%")),
            ModelConfig("b", "b", share=30),
        ],
    )
    scheduler = make_scheduler(config, cost)
    use = scheduler.ledger.usage()["a"]
    assert (use.min_blocks, use.max_blocks) == (32, 64)
    assert scheduler.lanes["a"].spec.row_tokens == 32, "8192 / (2 · 64 · 2)"
    assert scheduler.lanes["a"].spec.share == 50
    assert scheduler.lanes["b"].spec.share == 30
    wide = structs.replace(model(), shape=structs.replace(model().shape, head_dim=4096))
    with pytest.raises(ConfigError, match="block_bytes"):
        make_scheduler(config, table(a=wide, b=model()))


def test_rows_hold_what_the_configuration_says_of_k_and_v() -> None:
    """Costs are the profile's, memory is the configuration's."""
    measured = structs.replace(model(), shape=structs.replace(model().shape, kv_dtype="fp8"))
    cost = table(own=model(), kept=measured)

    def tokens(config: Config) -> dict[str, int]:
        return {name: lane.spec.row_tokens for name, lane in make_scheduler(config, cost).lanes.items()}

    models = [ModelConfig("own", "own", kv_dtype="fp8"), ModelConfig("kept", "kept")]
    assert tokens(Config(model=models)) == {"own": 64, "kept": 32}
    assert tokens(plain_config(["own", "kept"], cost)) == {"own": 32, "kept": 64}, "as they were measured"
    with pytest.raises(ConfigError, match="no model 'c'"):
        plain_config(["c"], cost)
    profile = table_profile(structs.replace(measured, folder="smol"))
    named = [ModelConfig("x", "/m/smol", kv_dtype="fp8"), ModelConfig("y", "/m/smol")]
    assert likenesses(Config(model=named), profile) == {"x": "a"}


def test_a_second_name_for_a_measured_folder_is_recognised() -> None:
    profile = structs.replace(model(), folder="smol")
    named = Config(model=[ModelConfig("copy", "/models/smol"), ModelConfig("other", "/models/x")])
    assert likenesses(named, table_profile(profile)) == {"copy": "a"}


def table_profile(a: ModelProfile) -> Profile:
    return Profile(FORMAT, Device("hand", 2, [50, 100]), {"a": a})


def test_requests_that_cannot_meet_their_target_are_refused_as_the_daemon_does() -> None:
    """Ten prompts of half a second each at once, and a first token promised within two seconds."""
    cost = table(a=model(prefill=0.001, decode=0.01))
    asked = [Item(0.1 * i, "a", 500, 5) for i in range(60)]
    config = Config(scheduler=SchedulerConfig(admission="slo"), model=[ModelConfig("a", "a", ttft_slo=2.0)])
    records = run(Workload(asked, {}), cost, config)
    late = records.first - records.sent
    assert (records.outcome == Outcome.REFUSED).sum() > 20
    assert (records.outcome == Outcome.SERVED).sum() > 8
    plain = run(Workload(asked, {}), cost, structs.replace(config, scheduler=SchedulerConfig()))
    assert np.nanmax(late) < 0.2 * np.nanmax(plain.first - plain.sent)
