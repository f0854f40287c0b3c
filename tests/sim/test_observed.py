"""Who observes a simulation hears what a daemon's journal hears."""

import pytest
from support.costs import model, table

from muxd.engine.journal import Journal
from muxd.sim.build import make_scheduler, plain_config
from muxd.sim.workload import Item, Workload
from muxd.sim.world import World


def test_a_journal_hears_of_every_batch() -> None:
    cost = table(a=model(prefill=0.001, decode=0.01))
    scheduler = make_scheduler(plain_config(["a"]), cost)
    journal = Journal(scheduler.lanes, scheduler.ledger)
    work = Workload([Item(1.0, "a", 100, 11)], {})
    world = World(scheduler, cost, work, jumps=False, observe=journal.observe)
    records = world.run()
    spans = journal.timeline.snapshot(world.clock.now()).spans
    assert [span.phase for span in spans] == ["prefill", *["decode"] * 10]
    assert spans[0].start == 1.0
    assert spans[-1].end == pytest.approx(records.end[0])
    assert {span.share for span in spans} == {100}
