"""What each policy promises, and what the row keeper promises under all of them."""

import pytest
from support.bench_unit import BenchUnit
from support.bench_worker import Spec, Worker
from support.lanes import lane_spec
from support.timed_unit import Arrival, TimedUnit

from muxd.engine.actions import QuotaMoved, Tick
from muxd.engine.memory import Terms
from muxd.engine.policies import POLICIES
from muxd.engine.settings import Settings
from muxd.errors import Busy, ConfigError
from muxd.messages import Prefill

SMALL = Settings(drain_timeout=0.5, prefill_tokens=16, look_ahead=4, adapt_period=4.0)


def unit_of(policy: str, names: str = "ab", blocks: int = 600, **spec: int) -> BenchUnit:
    return BenchUnit([Spec(name, **spec) for name in names], blocks, settings=SMALL, policy=policy)  # type: ignore[arg-type]


def started(unit: BenchUnit, since: int = 0) -> list[tuple[str, str]]:
    return [(model, type(command).__name__) for _, model, command in unit.launches[since:]]


def stream(unit: BenchUnit, model: str, max_tokens: int = 500) -> None:
    """One running sequence of ``model`` more."""
    sequence = unit.arrive(model, 4, max_tokens)
    while sequence.id not in unit.emitted:
        busy = unit.busy()
        unit.finish(model if model in busy else busy[0])


# ---- temporal ---------------------------------------------------------------------------------------


def test_temporal_runs_one_batch_on_the_whole_device_prompts_first_by_arrival() -> None:
    unit = unit_of("temporal", "abc")
    stream(unit, "a")
    for model in "cb":
        unit.now += 0.01
        unit.arrive(model, 4)
    start = len(unit.launches)
    for _ in range(5):
        assert len(unit.busy()) == 1
        unit.finish(unit.busy()[0])
    assert started(unit, start)[:2] == [("c", "Prefill"), ("b", "Prefill")]
    steps = [model for model, kind in started(unit, start)[2:] if kind == "Decode"]
    assert sorted(steps) == ["a", "b", "c"]
    assert {command.share for _, _, command in unit.launches} == {100}


def test_temporal_gives_a_stream_that_waits_a_step_between_two_prefills() -> None:
    unit = unit_of("temporal", "ab")
    stream(unit, "a")
    for _ in range(10):
        unit.arrive("b", 16, 1)
    start = len(unit.launches)
    for _ in range(8):
        unit.finish(unit.busy()[0], seconds=0.6)
    assert started(unit, start + 1)[:4] == [("a", "Decode"), ("b", "Prefill")] * 2


# ---- spatial ----------------------------------------------------------------------------------------


def test_spatial_gives_everybody_its_share_and_never_more() -> None:
    unit = BenchUnit([Spec("a", share=60), Spec("b", share=60)], 600, settings=SMALL, policy="spatial")
    stream(unit, "a")
    unit.finish("a")
    assert unit.launches[-1][2].share == 50  # alone, and still only its part of 60 + 60
    stream(unit, "b")
    assert set(unit.busy()) == {"a", "b"}


def test_spatial_slices_hold_against_a_flood() -> None:
    unit = unit_of("spatial", "ab", blocks=64)
    assert {m: (u.min_blocks, u.max_blocks) for m, u in unit.ledger.usage().items()} == {
        "a": (32, 32),
        "b": (32, 32),
    }
    for _ in range(20):
        unit.arrive("a", 20, 20)
    for _ in range(10):
        unit.finish("a")
    assert unit.ledger.held("a") <= 32
    quiet = unit.arrive("b", 40, 2)
    assert quiet.rows  # at once
    unit.run()
    assert set(unit.outcome.values()) == {"served"}


def test_leaving_spatial_gives_the_configured_quotas_back() -> None:
    unit = BenchUnit([Spec("a", min_blocks=10), Spec("b")], 64, settings=SMALL)
    before = unit.ledger.usage()
    unit.scheduler.set_policy("spatial")
    assert unit.ledger.usage()["b"].max_blocks < 64
    unit.scheduler.set_policy("temporal")
    assert unit.ledger.usage() == before
    unit.arrive("a", 4)
    with pytest.raises(Busy):
        unit.scheduler.set_policy("mux")
    with pytest.raises(ConfigError, match="lifo"):
        unit.scheduler.set_policy("lifo")


def test_spatial_refuses_what_its_slice_can_never_hold() -> None:
    unit = unit_of("spatial", "ab", blocks=64)
    assert unit.outcome[unit.arrive("a", 16 * 4, 1).id] == "refused"
    unit.scheduler.set_policy("mux")
    assert unit.arrive("a", 16 * 4, 1).id not in unit.outcome


# ---- fcfs and round robin ---------------------------------------------------------------------------


def test_first_come_begins_no_younger_prompt_while_an_older_one_waits() -> None:
    unit = BenchUnit([Spec("big", blocks=8), Spec("small", blocks=1)], 64, settings=SMALL, policy="fcfs")
    stream(unit, "big", max_tokens=12)
    unit.now += 1
    unit.arrive("big", 28, 2)  # its rows are not free
    unit.now += 1
    unit.arrive("small", 4, 2)
    unit.finish("big")
    assert unit.busy() == ["big"]  # the running sequence goes on, small's prompt waits its turn
    unit.run()
    prefills = [model for model, kind in started(unit) if kind == "Prefill"]
    assert prefills[-1] == "small"
    assert set(unit.outcome.values()) == {"served"}


def test_round_robin_passes_over_who_cannot_start() -> None:
    unit = BenchUnit(
        [Spec("big", blocks=8), Spec("small", blocks=1)], 64, settings=SMALL, policy="round_robin"
    )
    stream(unit, "big", max_tokens=12)
    unit.arrive("big", 28, 2)
    unit.arrive("small", 4, 2)
    unit.finish("big")
    assert set(unit.busy()) == {"big", "small"}


def test_round_robin_passes_over_a_prompt_that_finds_no_share_for_one_round_only() -> None:
    """Beside two streams that need half each, the whole device is never free by itself."""
    specs = [Spec("a"), Spec("b"), Spec("big", share=100)]
    unit = BenchUnit(specs, 3000, settings=SMALL, policy="round_robin")
    for model in "ab":
        stream(unit, model)
    unit.arrive("big", 4)
    since = len(unit.launches)
    while len(unit.launches) < since + 30:
        oldest = min(unit.busy(), key=lambda model: unit.workers[model].busy.batch)  # type: ignore[union-attr]
        unit.finish(oldest)
    models = [model for model, _ in started(unit, since)]
    assert 2 <= models.index("big") <= 4, models
    assert models.count("big") >= 6


def test_neither_holds_a_decode_back_for_a_prompt() -> None:
    """mux does: see test_a_waiting_prefill_stops_new_decodes_until_it_has_its_share."""
    specs = [Spec("a", share=50), Spec("b", share=50), Spec("c", share=100)]
    for policy in ("round_robin", "fcfs"):
        unit = BenchUnit(specs, 3000, settings=SMALL, policy=policy)
        stream(unit, "a")
        stream(unit, "b")
        while len(unit.busy()) < 2:
            unit.finish(unit.busy()[0])
        unit.now += 1
        unit.arrive("c", 4)
        start = len(unit.launches)
        unit.finish("a")
        assert started(unit, start) == [("a", "Decode")], policy


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_serves_everybody_of_a_mixed_load(policy: str) -> None:
    specs = [Spec("a", blocks=3, min_blocks=9), Spec("b", blocks=2, row_tokens=2), Spec("c", row_tokens=8)]
    unit = TimedUnit(specs, 90, settings=SMALL, policy=policy)
    arrivals = [Arrival(0.05 * i, "abc"[i % 3], 1 + 7 * i % 23, 1 + 5 * i % 17) for i in range(120)]
    unit.play(arrivals)
    assert set(unit.outcome.values()) == {"served"}
    assert len(unit.outcome) == 120


# ---- prefixes ---------------------------------------------------------------------------------------


def test_a_prompt_starts_behind_the_rows_it_shares() -> None:
    unit = unit_of("mux", "a")
    unit.arrive("a", 14, 2, same=12)
    unit.run()
    second = unit.arrive("a", 14, 2, same=12)
    chunk = unit.launches[-1][2].chunks[0]  # type: ignore[union-attr]
    assert (chunk.start, len(chunk.known) // 4, len(chunk.tokens) // 4, chunk.first) == (12, 12, 2, True)
    assert second.cached == 12
    unit.run()
    assert unit.ledger.usage()["a"].matched_tokens == 12


def test_the_last_token_is_always_computed() -> None:
    unit = unit_of("mux", "a")
    for _ in range(2):
        unit.arrive("a", 12, 1, same=12)
        unit.run()
    assert unit.all[1].cached == 8


def test_without_prefix_cache_nothing_is_kept_or_found() -> None:
    unit = BenchUnit([Spec("a", prefix_cache=False)], 600, settings=SMALL)
    for _ in range(2):
        unit.arrive("a", 12, 1, same=12)
        unit.run()
    assert unit.all[1].cached == 0
    assert unit.ledger.cached_blocks == 0


def test_a_lost_worker_takes_its_cached_rows_along() -> None:
    unit = unit_of("mux", "a")
    unit.arrive("a", 12, 1, same=12)
    unit.run()
    assert unit.ledger.cached_blocks > 0
    unit.lose("a")
    assert unit.ledger.cached_blocks == 0
    unit.revive("a")
    unit.arrive("a", 12, 1, same=12)
    unit.run()
    assert unit.all[1].cached == 0


def test_a_preempted_stream_finds_its_rows_again_if_nobody_took_them() -> None:
    unit = BenchUnit([Spec("a", blocks=1)], 12, settings=SMALL)
    first, second = unit.arrive("a", 16, 24), unit.arrive("a", 16, 24)
    unit.run()
    assert second.preemptions
    again = [c for _, _, command in unit.launches if isinstance(command, Prefill) for c in command.chunks]
    starts = [chunk.start for chunk in again if chunk.seq == second.id and chunk.first]
    assert any(starts[1:])
    assert (second.cached, first.preemptions) == (0, 0)  # what it had computed itself was not cached before
    assert [len(unit.emitted[s.id]) for s in (first, second)] == [24, 24]


# ---- rows -------------------------------------------------------------------------------------------


def test_look_ahead_is_promised_and_not_held() -> None:
    unit = BenchUnit([Spec("a", blocks=1)], 100, settings=Settings(0.5, 16, look_ahead=64))
    unit.arrive("a", 8, 64)
    assert unit.ledger.held("a") == 2
    assert unit.scheduler.lanes["a"].promised == 16


def test_a_newcomer_that_would_borrow_leaves_what_was_promised() -> None:
    specs = [
        Spec("a", blocks=1, weight=1e-3),
        Spec("b", blocks=1, weight=1e-3),
        Spec("c", blocks=1, weight=1.0),
    ]
    unit = BenchUnit(specs, 24, settings=Settings(0.5, 16, look_ahead=64))
    unit.arrive("a", 8, 60)  # 2 rows, and 15 promised
    unit.finish("a")
    late = unit.arrive("b", 32, 4)  # 8 rows: there, but promised
    assert not late.rows
    unit.run()
    assert not unit.preempted
    assert set(unit.outcome.values()) == {"served"}


def test_who_is_within_its_quota_takes_its_rows_back_from_a_borrower_after_the_drain_timeout() -> None:
    specs = [Spec("a", blocks=1, weight=1.0), Spec("b", blocks=1, weight=1.0)]
    unit = BenchUnit(specs, 24, settings=Settings(0.5, 64, look_ahead=4, adapt_period=1e6))
    unit.arrive("a", 24, 60)
    unit.arrive("a", 24, 60)
    for _ in range(6):
        unit.finish("a")
    assert unit.ledger.held("a") > 12 == unit.scheduler.quota("a")
    quiet = unit.arrive("b", 40, 4)
    assert not quiet.rows
    while not quiet.rows:
        assert not unit.preempted or unit.now >= quiet.arrived + 0.5
        unit.finish("a", seconds=0.1)
    assert unit.preempted == [1]  # the youngest of a
    assert unit.now <= quiet.arrived + 0.5 + 2 * 0.1
    assert unit.ledger.held("a") <= 12
    unit.run()
    assert [len(unit.emitted[s.id]) for s in unit.all] == [60, 60, 4]


def test_quotas_move_to_the_model_whose_prompts_wait() -> None:
    unit = TimedUnit(
        [Spec("busy", blocks=1, max_running=100), Spec("idle", blocks=1)], 40, settings=SMALL, audit=False
    )
    moved: list[QuotaMoved] = []
    perform = unit._perform

    def watch(action: object) -> None:
        if isinstance(action, QuotaMoved):
            moved.append(action)
        perform(action)  # type: ignore[arg-type]

    unit._perform = watch  # type: ignore[method-assign]
    before = unit.scheduler.quota("busy")
    unit.play([Arrival(0.02 * i, "busy", 16, 16) for i in range(600)])
    assert unit.scheduler.quota("busy") > before
    assert {move.model for move in moved} == {"busy", "idle"}
    assert all(move.reason for move in moved)


# ---- models that come and go ------------------------------------------------------------------------


def test_a_closed_model_leaves_its_guarantee_to_the_others() -> None:
    unit = BenchUnit([Spec("a"), Spec("b", min_blocks=40)], 64, settings=SMALL)
    lane = unit.scheduler.lanes["b"]
    assert unit.scheduler.lanes["a"].spec.max_context == 12 * 4
    unit.arrive("b", 4, 1)
    with pytest.raises(Busy):
        unit.scheduler.close("b")
    unit.run()
    unit.scheduler.close("b")
    assert unit.scheduler.lanes["a"].spec.max_context == 32 * 4
    unit.scheduler.open(lane.spec, Terms(40, 64, max_rows=32))
    unit.revive("b")
    assert unit.scheduler.lanes["a"].spec.max_context == 12 * 4
    served = unit.arrive("b", 4, 3)
    unit.run()
    assert unit.outcome[served.id] == "served"


def test_what_quotas_have_learnt_outlives_models_that_come_and_go() -> None:
    unit = TimedUnit(
        [Spec("busy", blocks=1, max_running=100), Spec("idle", blocks=1)], 120, settings=SMALL, audit=False
    )
    unit.play([Arrival(0.01 * i, "busy", 16, 16) for i in range(600)])
    learnt = {model: unit.scheduler.quota(model) for model in ("busy", "idle")}
    assert learnt["busy"] >= learnt["idle"] + 30
    opened(unit, Spec("new", blocks=1))
    quotas = {model: unit.scheduler.quota(model) for model in unit.scheduler.lanes}
    assert quotas["new"] >= 30, "about its weight's part, 40"
    assert quotas["busy"] - quotas["idle"] >= 30, "not an equal part each"
    assert sum(quotas.values()) == 120
    unit.scheduler.close("new")
    left = {model: unit.scheduler.quota(model) for model in learnt}
    assert left["busy"] - left["idle"] >= 30
    with pytest.raises(ConfigError):
        opened(unit, Spec("new", blocks=2), 65)
    assert {model: unit.scheduler.quota(model) for model in learnt} == left, "a failed load changes nothing"


def opened(unit: BenchUnit, spec: Spec, guarantee: int = 0) -> None:
    unit.specs[spec.name], unit.workers[spec.name] = spec, Worker(spec, pool=unit._pool)
    lane = lane_spec(spec.name, 50, spec.row_tokens, spec.blocks, 1000, 8, 100, 32)
    unit.scheduler.open(lane, Terms(guarantee, 64, max_rows=64 // spec.blocks))


def test_a_new_guarantee_does_not_strand_a_waiting_prompt() -> None:
    unit = BenchUnit([Spec("a"), Spec("b")], 64)
    sequence = unit.arrive("a", 100, 20)
    before = unit.ledger.usage()
    with pytest.raises(Busy, match="a has a request longer"):
        opened(unit, Spec("c"), 30)
    assert unit.ledger.usage() == before
    assert "c" not in unit.scheduler.lanes
    unit.workers.pop("c")
    unit.run()
    assert unit.outcome[sequence.id] == "served"


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_model_opens_and_closes_under_every_policy(policy: str) -> None:
    unit = BenchUnit([Spec("a"), Spec("b")], 64, policy=policy)
    unit.arrive("a", 8, 20)
    quota = unit.scheduler.quota("a")
    opened(unit, Spec("c"))
    unit.revive("c")
    served = unit.arrive("c", 4, 3)
    unit.run()
    assert unit.outcome[served.id] == "served"
    with pytest.raises(ConfigError):
        opened(unit, Spec("d"), 65)
    unit.workers.pop("d")
    unit.workers.pop("c")
    unit.all.remove(served)
    unit.scheduler.close("c")
    assert unit.scheduler.quota("a") == quota
    unit.check()


def test_a_tick_is_wanted_for_quotas_only_while_somebody_is_there() -> None:
    unit = unit_of("mux")
    assert unit.scheduler.deadline(unit.now) is None
    unit.arrive("a", 4, 50)
    due = unit.scheduler.deadline(unit.now)
    assert due is not None
    unit.now = due
    unit.handle(Tick())
    assert unit.scheduler.deadline(unit.now) > due  # type: ignore[operator]
    unit.run()
    assert unit.scheduler.deadline(unit.now) is None
