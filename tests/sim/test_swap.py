"""Swapping as a baseline: what a load takes by hand, nobody lost, and never more in memory than there is."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.costs import model, table
from support.examples import examples
from typer.testing import CliRunner

from muxd.cli.muxctl import app
from muxd.config import Config, ModelConfig, PoolConfig
from muxd.cost.profile import FORMAT, Profile, save
from muxd.cost.table import CostTable
from muxd.engine.policies import Policy
from muxd.sim.build import make_scheduler
from muxd.sim.generate import Recipe, generate
from muxd.sim.records import Outcome, Records
from muxd.sim.swap import SwapTerms, swap
from muxd.sim.workload import Item, Workload, write
from muxd.sim.world import World

GB = 10**9


def costs(*names: str) -> CostTable:
    models = {name: model(prefill=1e-6, decode=0.01, weights=10 * GB) for name in names}
    return table(gpu=False, memory=None, **models)


def run(workload: Workload, policy: type[Policy]) -> Records:
    names = sorted(workload.models)
    config = Config(pool=PoolConfig("64M"), model=[ModelConfig(name, name) for name in names])
    cost = costs(*names)
    return World(make_scheduler(config, cost, policy), cost, workload).run()


def test_a_load_takes_its_start_and_its_bytes_and_the_old_model_ends_first() -> None:
    """a is there from the beginning; b is loaded when a has ended what it runs, a again after b."""
    terms = SwapTerms(memory=10 * GB, rate=5e9, start=1.0)
    items = [Item(0.0, "a", 4, 101), Item(0.5, "b", 4, 2), Item(0.6, "a", 4, 2)]
    records = run(Workload(items, {}), swap({"a": 10 * GB, "b": 10 * GB}, terms))
    assert records.end[0] == pytest.approx(1.0, abs=0.01)
    assert records.first[1] == pytest.approx(1.0 + 3.0, abs=0.01)
    assert records.first[2] == pytest.approx(4.01 + 3.0, abs=0.02)


def test_what_fits_beside_stays() -> None:
    terms = SwapTerms(memory=20 * GB, rate=5e9, start=1.0)
    items = [Item(float(i), "ab"[i % 2], 4, 2) for i in range(6)]
    records = run(Workload(items, {}), swap({"a": 10 * GB, "b": 10 * GB}, terms))
    assert (records.first - records.sent < 0.05).all()


def test_a_model_that_never_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="b does not fit 5000000000 bytes"):
        swap({"a": GB, "b": 10 * GB}, SwapTerms(memory=5e9))


@settings(max_examples=examples(40))
@given(st.integers(1, 4), st.integers(1, 4), st.floats(0.5, 30), st.integers(0, 99))
def test_everybody_is_served_once_and_memory_is_never_exceeded(
    count: int, room: int, rate: float, seed: int
) -> None:
    names = [f"m{i}" for i in range(count)]
    workload = generate(Recipe(names, rate, 3.0, cv=2.0, lengths="uniform:1-90,1-60", seed=seed))
    kind = swap(dict.fromkeys(names, 10 * GB), SwapTerms(room * 10 * GB, rate=1e10, start=0.1))
    seen: list[int] = []

    class Watched(kind):  # type: ignore[valid-type, misc]
        def launch(self, now: float) -> None:
            super().launch(now)
            seen.append(len(self._resident) + (self._loading is not None))

    records = run(workload, Watched)
    assert (records.outcome == Outcome.SERVED).all()
    assert np.isfinite(records.end).all()
    assert not seen or max(seen) <= room


def test_it_is_a_policy_of_simulate(tmp_path: Path) -> None:
    cost, file = tmp_path / "cost.json", tmp_path / "w.jsonl"
    known = costs("a", "b")
    save(cost, Profile(FORMAT, known.device, {name: known.model(name) for name in "ab"}))
    write(file, Workload([Item(0.0, "a", 4, 2), Item(0.1, "b", 4, 2)], {"duration": 1.0}))
    args = ["simulate", "--workload", str(file), "--cost", str(cost), "--policy", "swap"]
    shown = CliRunner().invoke(app, args)
    assert shown.exit_code == 0, shown.output
    assert "policy swap" in shown.output
    refused = CliRunner().invoke(app, [*args, "--swap-memory", "1G"])
    assert refused.exit_code == 1
    assert "--swap-memory '1G': a does not fit" in refused.output
