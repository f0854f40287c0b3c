"""More models than memory in virtual time: everybody is served, memory is never overfull, and waking pays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from support.examples import examples
from support.placements import COSTS, GB

from muxd.config import Config, ModelConfig, PoolConfig
from muxd.cost.sampled import profile_of
from muxd.cost.shapes import CATALOGUE
from muxd.cost.table import CostTable
from muxd.engine.learnt import Learnt
from muxd.errors import ConfigError
from muxd.fleet.learnt import Record, decode, encode
from muxd.fleet.popularity import Usual
from muxd.placement.wakes import Wakes
from muxd.placement.waking import Rules
from muxd.sim.build import make_scheduler
from muxd.sim.records import Outcome
from muxd.sim.waking import SITE, Footprint, Waking
from muxd.sim.workload import Item, Workload

NAMES = [f"m{i}" for i in range(4)]
SHAPE = CATALOGUE["llama-3.2-1b"]
COST = CostTable(
    profile_of(
        COSTS, "A100", {name: ("llama-3.2-1b", 1) for name in NAMES}, shapes=dict.fromkeys(NAMES, SHAPE),
        rungs=(25, 50, 75, 100), gpu=True,
    )
)  # fmt: skip
SIZES = dict.fromkeys(NAMES, Footprint(3 * GB, 2 * GB))
RULES = Rules(
    {SITE: 6 * GB}, host=8 * GB, start=0.1, host_rate=20 * GB, disk_rate=GB, least=0.5, patience=2.0
)


def waking(items: list[Item], rules: Rules = RULES, wakes: dict[str, Wakes] | None = None) -> Waking:
    config = Config(pool=PoolConfig(bytes="1G"), model=[ModelConfig(name=name, path=name) for name in NAMES])
    return Waking(make_scheduler(config, COST), COST, Workload(items, {}), rules, SIZES, wakes)


def test_a_model_that_sleeps_wakes_in_the_seconds_it_takes() -> None:
    run = waking([Item(1.0, "m3", 20, 5)])
    records = run.run()
    assert (run.wakes, run.naps) == (1, 1)
    assert 0.2 <= records.first[0] - 1.0 < 0.3, "0.1 s and 2 GB at 20 GB/s, and its prefill"


def test_without_host_memory_it_comes_from_disk() -> None:
    records = waking([Item(1.0, "m3", 20, 5)], replace(RULES, host=0)).run()
    assert 2.1 <= records.first[0] - 1.0 < 2.2


def test_it_takes_what_a_daemon_has_learnt_that_it_takes() -> None:
    """From the file that the daemon keeps; within the bounds of what it believes itself."""
    kept = {name: Record("", "", Learnt(), Usual(), Wakes(parked=0.7, cold=1e6)) for name in NAMES}
    wakes = {name: record.wakes for name, record in decode(encode(kept)).items()}
    items = [Item(1.0, "m3", 20, 5)]
    records = waking(items, wakes=wakes).run()
    assert 0.7 <= records.first[0] - 1.0 < 0.8
    records = waking(items, replace(RULES, host=0), wakes).run()
    assert 8 * 2.1 <= records.first[0] - 1.0 < 8 * 2.1 + 0.1


def test_a_long_answer_is_cut_when_somebody_has_waited_and_goes_on_later() -> None:
    """Two models stream for long, two others are asked for: nobody waits for the end of a stream."""
    long = [Item(0.0, name, 20, 3000) for name in ("m0", "m1")]
    items = [*long, Item(1.0, "m2", 20, 5), Item(1.1, "m3", 20, 5)]
    run = waking(items)
    records = run.run()
    assert run.cut >= 1
    assert (records.outcome == Outcome.SERVED).all()
    assert (records.first - records.sent)[2:].max() < 3 * RULES.patience
    assert records.end[0] > records.first[2]


def test_one_at_a_time_is_slower_than_waking() -> None:
    items = [Item(0.3 * i, NAMES[i % 3], 20, 20) for i in range(60)]
    worth, one = (waking(items, replace(RULES, kind=kind)).run() for kind in ("worth", "one"))
    assert np.mean(worth.first - worth.sent) < np.mean(one.first - one.sent)


def test_a_model_that_could_never_be_there_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="m0 takes 3000000000 bytes"):
        waking([], replace(RULES, memory={SITE: GB}))


@settings(max_examples=examples(40), deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1.5), st.integers(1, 400)), min_size=1, max_size=60),
    st.sampled_from(["worth", "lru", "one"]),
    st.sampled_from([0, 2 * GB, 8 * GB]),
    st.sampled_from([0.0, 1.0]),
    st.dictionaries(st.sampled_from(NAMES), st.builds(Wakes, st.floats(0, 1e9), st.floats(0, 1e9))),
)
def test_everybody_is_served_whoever_comes(
    drawn: list[tuple[int, float, int]], kind: str, host: int, idle: float, wakes: dict[str, Wakes]
) -> None:
    at, items = 0.0, []
    for model, gap, tokens in drawn:
        at += gap
        items.append(Item(at, NAMES[model], 30, tokens))
    rules = replace(RULES, kind=kind, host=host, idle=idle)
    run = waking(items, rules, wakes)
    records = run.run()
    assert (records.outcome == Outcome.SERVED).all()
    assert (records.first >= records.sent).all()
    assert len(run._residency.aimed(SITE)) <= 2
    for lane in run._lanes.values():
        assert lane.quiet
    run._unit.scheduler.ledger.audit()
