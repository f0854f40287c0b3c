"""What is simulated is what serves: for random configurations the daemon's scheduler and the simulator's are
alike, and answer the same events with the same actions."""

from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from support.both_ways import (
    FOLDERS,
    KEEPING,
    Here,
    Pair,
    compare,
    described,
    everything_in,
    play,
    profiled,
    simulated,
    site_of,
)
from support.examples import examples

from muxd.config import (
    Admission,
    Config,
    ModelConfig,
    Policy,
    PoolConfig,
    QuotaConfig,
    SchedulerConfig,
    Split,
)
from muxd.cost.profile import Shape
from muxd.engine.actions import Arrived
from muxd.engine.request import Request
from muxd.engine.sequence import Sequence
from muxd.errors import ConfigError
from muxd.messages import Sampling
from muxd.models.delta import DeltaNet
from muxd.pool.arena import Arena


@pytest.fixture
def here(tmp_path: Path, cuda_here: Path) -> Here:
    return everything_in(tmp_path)


# ---- random configurations -------------------------------------------------------------------------

sizes = st.sampled_from(["0", "24K", "10%", "20%"])
quotas = st.builds(
    QuotaConfig, min=sizes, max=st.sampled_from(["100%", "60%", "96K"]), weight=st.floats(0.1, 9)
)
bare = st.builds(
    ModelConfig,
    name=st.just(""),
    path=st.sampled_from([*sorted(FOLDERS), KEEPING]),
    share=st.sampled_from([0, 0, 0, 20, 50, 100]),
    dtype=st.sampled_from(["auto", "float32", "fp16"]),
    kv_dtype=st.sampled_from(["auto", "fp8"]),
    quota=quotas,
    max_context=st.sampled_from([0, 0, 30, 2000]),
    max_running=st.sampled_from([0, 1, 3]),
    max_queue=st.sampled_from([2, 256]),
    ttft_slo=st.sampled_from([0.0, 0.05, 2.0]),
    tpot_slo=st.sampled_from([0.0, 0.02]),
    prefix_cache=st.booleans(),
)
models = st.lists(bare, min_size=1, max_size=4).map(
    lambda found: [structs.replace(one, name=f"m{i}") for i, one in enumerate(found)]
)
schedulers = st.builds(
    SchedulerConfig,
    policy=st.sampled_from(get_args(Policy)),
    admission=st.sampled_from(get_args(Admission)),
    adapt_period=st.sampled_from([0.05, 8.0]),
    overbook=st.sampled_from([0, 40]),
    drain_timeout=st.sampled_from([0.05, 0.5]),
    prefill_tokens=st.sampled_from([16, 512]),
    prefill_seconds=st.sampled_from([0.0, 0.02]),
    look_ahead=st.sampled_from([0, 64]),
    batch_timeout=st.sampled_from([0.1, 10.0]),
    split_phases=st.sampled_from(get_args(Split)),
)
pools = st.builds(
    PoolConfig, bytes=st.sampled_from(["128K", "300K", "2M"]), block_bytes=st.sampled_from([1024, 4096])
)
configs = st.builds(Config, pool=pools, scheduler=schedulers, model=models)

which = st.integers(0, 30)
arrivals = st.tuples(
    st.just("arrive"), which, st.integers(1, 8), st.integers(1, 90), st.integers(1, 30), st.booleans()
)
finishes = st.tuples(st.just("finish"), which, st.sampled_from([0.001, 0.03, 0.4]), st.booleans())
others = st.one_of(
    st.tuples(st.just("cancel"), which),
    st.tuples(st.sampled_from(["lose", "move"]), which),
    st.tuples(st.just("pause"), st.sampled_from([0.02, 1.0])),
    st.tuples(st.just("quota"), which, st.integers(0, 9), st.floats(0.1, 9.0)),
    st.tuples(st.just("share"), which, st.sampled_from([0, 30, 100])),
)
scripts = st.lists(st.one_of(arrivals, arrivals, finishes, finishes, others), max_size=60)


@settings(
    max_examples=examples(200),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_both_ways_to_a_scheduler_lead_to_the_same_one(here: Here, data: st.DataObject) -> None:
    config, script = here.config(data.draw(configs)), data.draw(scripts)
    device = here.devices[data.draw(st.sampled_from(sorted(here.devices)))]
    compare(here, config, device, profiled(here, config, device), script)


# ---- would it be noticed? --------------------------------------------------------------------------

PLAIN = Config(  # before its folders are there
    pool=PoolConfig("2M", 4096),
    scheduler=SchedulerConfig(),
    model=[ModelConfig("a", "wide", ttft_slo=2.0), ModelConfig("b", "deep")],
)
OTHER: dict[str, Any] = {  # what the simulator would have read, of each setting that schedulers go by
    "share": 50, "kv_dtype": "fp8", "quota": QuotaConfig("10%"), "max_context": 30, "max_running": 3,
    "max_queue": 2, "ttft_slo": 1.0, "tpot_slo": 1.0, "prefix_cache": False,
    "policy": "fcfs", "admission": "slo", "adapt_period": 1.0, "overbook": 10, "drain_timeout": 1.0,
    "prefill_tokens": 16, "prefill_seconds": 1.0, "look_ahead": 1, "batch_timeout": 1.0,
    "batch_timeout_factor": 1.0, "split_phases": "no",
    "layers": 1, "kv_heads": 1, "head_dim": 128, "max_positions": 64, "dtype": "float32",
    "row_blocks": 3, "delta": DeltaNet((True, False), 1, 2, 8, 8, 4),
    "rungs": [10, 100], "gpu": False, "caps": True,
}  # fmt: skip
# Where a model is and what it reads there, or for plans and doors alone.
AS_IT_STANDS = {"max_queue", "ttft_slo", "tpot_slo", "prefix_cache"}
TEXT = {"chat_template", "tool_parser", "reasoning", "aliases", "sampling", "system_prompt"}  # the door's
TEXT |= {"chat_template_kwargs"}
NO_MATTER = {
    "name",
    "path",
    "base",
    "lora",
    "dtype",
    "device",
    "tp",  # the shape is told of one of its devices
    "rate",
    "pooling",
    "weights",
    "cpu_step",
    "resident",
    *TEXT,
}


@pytest.mark.parametrize(
    "name",
    [n for n in (*ModelConfig.__struct_fields__, *SchedulerConfig.__struct_fields__) if n not in NO_MATTER],
)
def test_a_setting_that_one_of_them_forgot_is_noticed(here: Here, name: str) -> None:
    """Every setting there is: a new one goes to both, or is named above as none of theirs."""
    plain, device = here.config(PLAIN), here.devices["parts"]
    if name in ModelConfig.__struct_fields__:
        first = structs.replace(plain.model[0], **{name: OTHER[name]})
        changed = structs.replace(plain, model=[first, plain.model[1]])
    else:
        changed = structs.replace(plain, scheduler=structs.replace(plain.scheduler, **{name: OTHER[name]}))
    profile = profiled(here, plain, device)
    compare(here, plain, device, profile, [])
    with pytest.raises(AssertionError):
        compare(here, plain, device, profile, [], told=changed)
    one, other = (described(simulated(config, profile)) for config in (plain, changed))
    made = {key for key in one if one[key] != other[key]} - {"configured"}
    assert bool(made) != (name in AS_IT_STANDS), (
        "what the scheduler goes by is made of it, or read as it stands"
    )


@pytest.mark.parametrize(
    "name",
    [
        "layers",
        "kv_heads",
        "head_dim",
        "max_positions",
        "dtype",
        "row_blocks",
        "delta",
        "rungs",
        "gpu",
        "caps",
    ],
)
def test_a_fact_that_the_profile_has_wrong_is_noticed(here: Here, name: str) -> None:
    plain, device = here.config(PLAIN), here.devices["parts"]
    profile = profiled(here, plain, device)
    if name in Shape.__struct_fields__:
        model = profile.models["a"]
        wrong = structs.replace(model, shape=structs.replace(model.shape, **{name: OTHER[name]}))
        profile = structs.replace(profile, models={**profile.models, "a": wrong})
    else:
        profile = structs.replace(profile, device=structs.replace(profile.device, **{name: OTHER[name]}))
    with pytest.raises(AssertionError):
        compare(here, plain, device, profile, [])


def test_another_answer_is_noticed(here: Here) -> None:
    """Two schedulers that look alike, of which one has heard of a request before."""
    plain = here.config(PLAIN)
    profile = profiled(here, plain, here.devices["parts"])
    pair = Pair(simulated(plain, profile), simulated(plain, profile))
    stray = Request("x", "a", [9] * 50, 5, Sampling(temperature=0.0), frozenset())
    pair.both[1].handle(Arrived(Sequence(1 << 20, stray, 0.0)), 0.0)
    with pytest.raises(AssertionError):
        play(pair, [("arrive", 0, 1, 20, 5, False)])


def test_a_model_that_finds_no_row_fails_alone_and_for_the_same_reason(here: Here) -> None:
    device = here.devices["cpu of 2"]
    config = structs.replace(here.config(PLAIN), pool=PoolConfig("16K", 4096))
    entries = [here.read(model, device) for model in config.model]
    with closing(Arena(device, 16 << 10, 4096)) as arena:
        site = site_of(config, device, arena, entries)
        assert list(site.unit.lanes) == ["a"]
    assert [entry.error for entry in entries] == [
        "",
        "b: one row is 5 blocks, the pool has 4: raise pool.bytes",
    ]
    with pytest.raises(ConfigError) as refused:
        simulated(config, profiled(here, config, device))
    assert refused.value.message == entries[1].error
