"""Quotas, promise by promise; and each defect that MuxServe's quota adaption shipped with."""

from collections.abc import Mapping

import pytest

from muxd.engine.ewma import Average, FadingSum
from muxd.engine.quota import Demand, Quotas
from muxd.errors import ConfigError

QUIET = Demand(0, 0, 0.0)


def quotas(total: int, *models: str, **weights: float) -> Quotas:
    """Models without guarantee or ceiling, one block a row."""
    made = Quotas(total, period=1.0)
    for model in [*models, *weights]:
        made.add(model, 0, total, weights.get(model, 1.0), 1)
    return made


def hungry(held: int, waiting: int = 1000, oldest: float = 5.0) -> Demand:
    return Demand(held, waiting, oldest)


def repeat(made: Quotas, demands: Mapping[str, Demand], periods: int) -> None:
    for _ in range(periods):
        made.adapt(demands, made.next_due())


# ---- settings -----------------------------------------------------------------------------------------


def test_at_first_the_weights_divide_what_is_not_guaranteed() -> None:
    made = Quotas(100, period=1.0)
    made.add("a", 20, 100, 1.0, 4)
    assert made.quotas() == {"a": 100}
    made.add("b", 0, 100, 3.0, 1)
    assert made.quotas() == {"a": 40, "b": 60}


def test_what_a_ceiling_refuses_goes_to_the_others_by_weight_whatever_the_order() -> None:
    made = Quotas(100, period=1.0)
    made.add("a", 0, 10, 1.0, 1)
    made.add("b", 0, 100, 1.0, 1)
    made.add("c", 0, 100, 2.0, 1)
    assert made.quotas() == {"a": 10, "b": 30, "c": 60}


def test_ceilings_that_leave_blocks_to_nobody() -> None:
    made = Quotas(100, period=1.0)
    made.add("a", 0, 10, 1.0, 1)
    made.add("b", 5, 20, 1.0, 1)
    assert made.quotas() == {"a": 10, "b": 20}
    made.set("b", 5, 100, 1.0)
    assert made.quotas() == {"a": 10, "b": 90}


def test_a_change_of_weight_or_guarantee_counts_at_once() -> None:
    made = quotas(100, "a", "b")
    made.set("a", 0, 100, 3.0)
    assert made.quotas() == {"a": 75, "b": 25}
    made.set("b", 60, 100, 1.0)
    assert made.quotas() == {"a": 30, "b": 70}
    made.set("b", 0, 5, 1.0)
    assert made.quotas() == {"a": 95, "b": 5}


def test_what_has_been_learnt_outlives_models_that_come_and_go() -> None:
    made = quotas(100, "busy", "quiet", "other")
    repeat(made, {"busy": hungry(90), "quiet": Demand(5, 0, 0.0), "other": Demand(5, 0, 0.0)}, 8)
    before = made.quota("busy")
    assert before > 80
    made.add("new", 0, 100, 1.0, 1)
    assert made.quota("new") >= 15
    assert made.quota("busy") > 50
    made.remove("new")
    made.remove("other")
    assert made.quota("busy") >= 75
    assert sum(made.quotas().values()) == 100


@pytest.mark.parametrize(
    ("low", "high", "weight", "word"),
    [
        (-1, 10, 1.0, "0 <= min"),
        (20, 10, 1.0, "min 20, max 10"),
        (0, 101, 1.0, "100 .the pool"),
        (0, 10, 0.0, "weight 0.0"),
        (0, 10, float("nan"), "weight nan"),
        (61, 100, 1.0, "lower a quota.min"),
    ],
)
def test_settings_that_cannot_hold_change_nothing(low: int, high: int, weight: float, word: str) -> None:
    made = Quotas(100, period=1.0)
    made.add("a", 40, 100, 1.0, 1)
    made.add("b", 0, 100, 1.0, 1)
    before = made.quotas()
    with pytest.raises(ConfigError, match=word):
        made.set("b", low, high, weight)
    with pytest.raises(ConfigError, match=word):
        made.add("c", low, high, weight, 1)
    assert made.quotas() == before


def test_wrong_calls() -> None:
    made = quotas(100, "a")
    with pytest.raises(ConfigError, match="a has a quota already"):
        made.add("a", 0, 10, 1.0, 1)
    with pytest.raises(ConfigError, match="row of 0 blocks"):
        made.add("b", 0, 10, 1.0, 0)
    with pytest.raises(KeyError):
        made.set("b", 0, 10, 1.0)
    with pytest.raises(KeyError):
        made.remove("b")
    with pytest.raises(ConfigError, match="adapt_period"):
        Quotas(100, period=0.0)


# ---- who moves ----------------------------------------------------------------------------------------


def test_it_is_due_every_period_and_never_makes_up_for_lost_ones() -> None:
    made = Quotas(100, period=8.0, start=100.0)
    assert not made.due(107.9)
    assert made.due(108.0)
    made.adapt({}, 131.0)
    assert made.next_due() == 139.0


def test_over_counts_what_is_beyond_the_quota() -> None:
    made = quotas(100, "a", "b")
    assert made.over("a", 50) == 0
    assert made.over("a", 57) == 7


def test_blocks_move_from_low_use_to_a_queue_that_waits_and_say_why() -> None:
    made = quotas(100, "a", "b")
    moves = made.adapt({"a": hungry(50), "b": Demand(10, 0, 0.0)}, 1.0)
    assert [(m.model, m.before, m.after) for m in moves] == [("a", 50, 75), ("b", 50, 25)]
    assert moves[0].reason == "needs 100 blocks, its queue waits for rows, on average 5.0 s"
    assert moves[1].reason == "needs 10 of 50 blocks"


def test_high_use_without_a_queue_that_waits_for_rows_moves_nothing() -> None:
    made = quotas(100, "a", "b")
    for demand in [Demand(90, 0, 0.0), Demand(50, 40, 0.0), Demand(50, 40, 0.05)]:
        assert made.adapt({"a": demand, "b": QUIET}, made.next_due()) == []


def test_a_queue_that_waits_for_less_than_its_quota_moves_nothing() -> None:
    """Others borrow what is its own: it takes that back, and needs no larger quota."""
    made = quotas(100, "a", "b")
    assert made.adapt({"a": Demand(10, 30, 5.0), "b": Demand(90, 0, 0.0)}, 1.0) == []


def test_a_giver_keeps_what_it_uses_and_its_guarantee() -> None:
    made = Quotas(100, period=1.0)
    made.add("a", 0, 100, 1.0, 1)
    made.add("b", 30, 100, 1.0, 1)
    repeat(made, {"a": hungry(50), "b": QUIET}, 20)
    assert made.quotas() == {"a": 70, "b": 30}
    made = quotas(100, "a", "b")
    repeat(made, {"a": hungry(57), "b": Demand(43, 0, 0.0)}, 20)
    assert made.quota("b") in range(43, 49)


def test_a_bursty_model_keeps_what_its_bursts_use() -> None:
    """The same average, 10 of 50 blocks: what is needed differs."""
    steady, bursty = quotas(100, "a", "b"), quotas(100, "a", "b")
    for period in range(60):
        repeat(steady, {"a": hungry(50), "b": Demand(10, 0, 0.0)}, 1)
        repeat(bursty, {"a": hungry(50), "b": Demand(40 if period % 4 == 0 else 0, 0, 0.0)}, 1)
    assert steady.quota("b") <= 15
    assert 25 <= bursty.quota("b") <= 50


def test_a_model_without_demand_or_without_worker_stands_still() -> None:
    made = quotas(100, "a", "b", "c")
    lost = Demand(0, 0, 0.0, ready=False)
    before = made.quotas()
    repeat(made, {"a": hungry(34), "b": lost}, 10)
    assert made.quotas() == before
    repeat(made, {"a": hungry(34), "b": QUIET}, 10)
    assert made.quota("c") == before["c"]
    assert made.quota("b") < 5


def test_arrivals_tell_of_a_need_before_it_is_held() -> None:
    """Half of what arrives is admitted: when all is, twice the 30 blocks will be held."""

    def quota_of_b(arriving: int) -> int:
        made = quotas(200, "a", "b", "c")
        rest = {"a": hungry(67), "c": Demand(60, 0, 0.0)}
        for waiting in (0, 5, 10):
            made.arrived("b", arriving, made.next_due() - 0.5)
            repeat(made, {"b": Demand(30, waiting, 0.0)}, 1)
        repeat(made, {**rest, "b": Demand(30, 10, 0.0)}, 12)
        return made.quota("b")

    assert quota_of_b(arriving=10) >= 58
    assert quota_of_b(arriving=1000) <= 50, "nearly all is admitted at once"


# ---- hysteresis ---------------------------------------------------------------------------------------


def test_less_than_a_grain_does_not_move() -> None:
    """Two models of 100 blocks: a grain is a tenth of 50."""
    made = quotas(100, "a", "b")
    assert made.adapt({"a": Demand(50, 4, 9.0), "b": QUIET}, 1.0) == []
    moves = quotas(100, "a", "b").adapt({"a": Demand(50, 9, 9.0), "b": QUIET}, 1.0)
    assert [m.after - m.before for m in moves] == [5, -5]


def test_who_has_gained_gives_nothing_for_two_periods_and_the_other_way_round() -> None:
    made = quotas(100, "a", "b")
    repeat(made, {"a": hungry(75), "b": QUIET}, 1)
    assert made.quotas() == {"a": 75, "b": 25}
    swapped = {"a": QUIET, "b": hungry(25)}
    repeat(made, swapped, 2)
    assert made.quotas() == {"a": 75, "b": 25}
    repeat(made, swapped, 1)
    assert made.quota("b") > 25


def test_the_calm_is_each_models_own() -> None:
    """A third model that has not moved may give and gain; the first two may not turn."""
    made = quotas(300, "a", "b", "c")
    steady = Demand(100, 0, 0.0)
    repeat(made, {"a": hungry(100), "b": QUIET, "c": steady}, 1)
    gained, gave = made.quota("a"), made.quota("b")
    assert gained > 100 > gave
    for _ in range(2):  # a has a surplus, but has just gained; c lacks
        repeat(made, {"a": QUIET, "b": Demand(gave, 0, 0.0), "c": hungry(100)}, 1)
        assert (made.quota("a"), made.quota("c")) == (gained, 100)
    repeat(made, {"a": QUIET, "b": Demand(gave, 0, 0.0), "c": hungry(100)}, 1)
    assert made.quota("a") < gained

    made = quotas(300, "a", "b", "c")
    repeat(made, {"a": hungry(100), "b": QUIET}, 1)
    for _ in range(2):  # b lacks, but has just given; c has a surplus
        repeat(made, {"a": Demand(gained, 0, 0.0), "b": hungry(gave), "c": QUIET}, 1)
        assert made.quota("b") == gave
    repeat(made, {"a": Demand(gained, 0, 0.0), "b": hungry(gave), "c": QUIET}, 1)
    assert made.quota("b") > gave


def test_no_more_than_a_quarter_of_the_pool_moves_at_once() -> None:
    made = quotas(1000, "a", "b", "c", "d")
    made.adapt({"a": hungry(250), "b": QUIET, "c": QUIET, "d": QUIET}, 1.0)
    assert 470 <= made.quota("a") <= 500


def test_the_longest_weighted_wait_gains_most() -> None:
    made = quotas(1000, "a", "b", "quiet", "silent")
    made.adapt({"a": hungry(250), "b": hungry(250, oldest=20.0), "quiet": QUIET, "silent": QUIET}, 1.0)
    gain_a, gain_b = made.quota("a") - 250, made.quota("b") - 250
    assert 3 * gain_a <= gain_b <= 6 * gain_a


# ---- goals --------------------------------------------------------------------------------------------


def test_a_giver_that_uses_all_of_its_quota_gives_as_its_sequences_end() -> None:
    made = quotas(100, "a", "b")
    repeat(made, {"a": hungry(100), "b": QUIET}, 8)
    assert made.quotas() == {"a": 100, "b": 0}
    both = {"a": hungry(100), "b": hungry(0)}
    repeat(made, both, 1)
    assert made.quotas() == {"a": 100, "b": 0}, "it keeps what it uses"
    assert (made.goal("a"), made.goal("b")) == (75, 25)
    assert made.growing("b", 0)
    assert not made.growing("b", 25)
    assert not made.growing("a", 75)
    repeat(made, {"a": hungry(75), "b": Demand(25, 0, 0.0)}, 1)
    assert made.quotas() == {"a": 75, "b": 25}, "the promise is kept though the taker waits no more"


def test_a_promise_not_taken_up_lapses() -> None:
    made = quotas(100, "a", "b")
    repeat(made, {"a": hungry(100), "b": QUIET}, 8)
    repeat(made, {"a": hungry(100), "b": hungry(0)}, 1)
    repeat(made, {"a": hungry(75), "b": QUIET}, 1)
    assert made.quotas() == {"a": 100, "b": 0}
    assert made.goal("b") == 0


# ---- defects of the released MuxServe -------------------------------------------------------------------


@pytest.mark.parametrize(
    "starved",
    [Demand(0, 5, 0.0), Demand(2, 5, 3.0), Demand(0, 5, 3.0), Demand(0, 0, 0.0, ready=False)],
    ids=["not admitted", "head waits", "head waits and nothing held", "no worker"],
)
def test_a_starved_model_is_not_read_as_low_use(starved: Demand) -> None:
    """There, use was the mean decode batch: a model that never got to decode became a donor."""
    made = quotas(100, "a", "b")
    repeat(made, {"a": hungry(98), "b": starved}, 30)
    assert made.quotas() == {"a": 50, "b": 50}


def test_quotas_count_blocks_so_that_the_size_of_a_row_is_no_advantage() -> None:
    """There, they counted sequences."""
    made = Quotas(9600, period=1.0)
    made.add("wide", 0, 9600, 1.0, 480)
    made.add("narrow", 0, 9600, 1.0, 3)
    made.add("idle", 0, 9600, 1.0, 3)
    for _ in range(30):
        wide, narrow = made.goal("wide") // 480 * 480, made.goal("narrow") // 3 * 3
        repeat(made, {"wide": hungry(wide, 9600), "narrow": hungry(narrow, 9600), "idle": QUIET}, 1)
    assert abs(made.quota("wide") - made.quota("narrow")) <= 2 * 320  # grains
    assert made.quota("idle") < 320


def test_a_model_whose_part_is_less_than_a_row_gets_one_when_it_waits() -> None:
    made = Quotas(1000, period=1.0)
    made.add("busy", 0, 1000, 99.0, 1)
    made.add("wide", 0, 1000, 1.0, 100)
    assert made.quota("wide") < 100
    for _ in range(8):
        repeat(made, {"busy": hungry(made.goal("busy")), "wide": Demand(0, 100, 4.0)}, 1)
    assert made.quota("wide") >= 100


# ---- averages -----------------------------------------------------------------------------------------


def test_an_average_takes_the_first_sample_and_forgets_it_by_time() -> None:
    average = Average(memory=2.0)
    average.add(100.0, 1.0)
    assert (average.value, average.deviation) == (100.0, 0.0)
    for _ in range(4):
        average.add(0.0, 0.5)
    assert average.value == pytest.approx(100 / 2.718281828)
    once = Average(memory=2.0)
    once.add(100.0, 1.0)
    once.add(0.0, 2.0)
    assert once.value == pytest.approx(average.value)
    assert once.deviation == pytest.approx(average.deviation)


def test_the_deviation_of_an_alternating_load() -> None:
    average = Average(memory=50.0)
    for sample in [0.0, 10.0] * 500:
        average.add(sample, 1.0)
    assert average.value == pytest.approx(5.0, abs=0.2)
    assert average.deviation == pytest.approx(5.0, abs=0.2)


def test_a_fading_sum_over_its_memory_is_a_rate() -> None:
    fading = FadingSum(memory=10.0)
    for second in range(200):
        fading.add(6.0, second / 2)
    assert fading.at(100.0) / 10.0 == pytest.approx(12.0, rel=0.05)
    assert fading.at(110.0) == pytest.approx(fading.at(100.0) / 2.718281828)
    assert fading.at(90.0) == fading.at(99.5), "time never goes back"
