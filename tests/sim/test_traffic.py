"""Traffic of each model's own: rates, phases and days as asked for, and no model changes another's."""

from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from muxd.errors import ConfigError
from muxd.sim.generate import mixed
from muxd.sim.traffic import Day, ModelTraffic, Phase, check, read
from muxd.sim.workload import Item, write

SECONDS = 400.0


@st.composite
def phases(draw: st.DrawFn) -> list[Phase]:
    """In order of time, some with a gap before them."""
    edges = sorted(draw(st.lists(st.integers(0, int(SECONDS)), max_size=6, unique=True)))
    made = [(float(a), float(b), draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))) for a, b in pairwise(edges)]
    return [phase for phase in made if draw(st.booleans())]


@st.composite
def traffic(draw: st.DrawFn, name: str) -> ModelTraffic:
    shown = draw(phases())
    every = draw(st.sampled_from([0.0, max((end for _, end, _ in shown), default=7.0)]))
    day = draw(st.none() | st.builds(Day, st.floats(0, 1), st.floats(10, 1000)))
    rate, cv = draw(st.floats(0.05, 5)), draw(st.sampled_from([0.5, 1.0, 3.0]))
    return ModelTraffic(name, rate, "uniform:1-90,1-60", cv, shown, every, day)


def asked(items: list[Item], name: str) -> list[Item]:
    return [item for item in items if item.model == name]


def times(items: list[Item]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([item.time for item in items])


@settings(max_examples=examples(60))
@given(traffic("a"), traffic("b"), traffic("c"), st.integers(0, 2**40))
def test_a_model_changes_no_other_ones_requests(
    a: ModelTraffic, b: ModelTraffic, c: ModelTraffic, seed: int
) -> None:
    alone = mixed([a], SECONDS, seed=seed).items
    assert asked(mixed([a, b], SECONDS, seed=seed).items, "a") == alone
    assert asked(mixed([c, b, a], SECONDS, seed=seed).items, "a") == alone
    twin = mixed([msgspec.structs.replace(a, name="d")], SECONDS, seed=seed).items
    assert times(twin).tolist() != times(alone).tolist() or not alone, "and has its own, too"


@settings(max_examples=examples(40))
@given(traffic("a"), traffic("b"), st.integers(0, 99))
def test_the_same_seed_gives_the_same_bits(a: ModelTraffic, b: ModelTraffic, seed: int) -> None:
    made, again, other = (mixed([a, b], SECONDS, seed=number) for number in (seed, seed, seed + 1))
    assert msgspec.json.encode(made.items) == msgspec.json.encode(again.items)
    assert made.header == again.header
    assert made.items != other.items or len(made.items) < 10
    assert all(one.time <= two.time for one, two in pairwise(made.items))


@settings(max_examples=examples(60))
@given(traffic("a"), st.integers(0, 99))
def test_the_number_of_requests_is_the_integral_of_the_rate(model: ModelTraffic, seed: int) -> None:
    moments = (np.arange(400_000) + 0.5) * SECONDS / 400_000
    factors = model.factor(moments)
    assert (factors >= 0).all()
    highest = model.highest(SECONDS)
    assert factors.max(initial=0) <= highest * (1 + 1e-12)
    expected = model.rate * SECONDS * factors.mean()
    # A count of gamma gaps varies by cv² times its mean; 7 times the deviation, and a burst more.
    room = 7 * max(1, model.cv) * (expected**0.5 + model.cv)
    assert abs(len(mixed([model], SECONDS, seed=seed).items) - expected) <= room


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_each_phase_has_its_rate(cv: float) -> None:
    """By hand: 20 a second, off, three times as many, and what no phase names; three times over."""
    shown = [(0.0, 300.0, 1.0), (300.0, 500.0, 0.0), (600.0, 800.0, 3.0)]
    model = ModelTraffic("a", 20.0, "constant:1,1", cv, shown, phases_every=1000.0)
    found = times(mixed([model], 3000.0).items) % 1000.0
    counts, _ = np.histogram(found, [0, 300, 500, 600, 800, 1000])
    assert counts[1] == 0
    for count, expected in zip(counts, [18_000, 0, 6_000, 36_000, 12_000], strict=True):
        assert abs(count - expected) <= 6 * max(1, cv) * expected**0.5


def test_gaps_have_their_variation_where_the_rate_is_highest() -> None:
    model = ModelTraffic("a", 10.0, "constant:1,1", 4.0, [(0.0, 20_000.0, 5.0)])
    found = times(mixed([model], 20_000.0).items)
    gaps = np.diff(found)
    assert gaps.std() / gaps.mean() == pytest.approx(4.0, rel=0.05)


@settings(max_examples=examples(40))
@given(traffic("a"), st.integers(0, 99), st.integers(0, 390))
def test_a_phase_that_is_off_takes_its_requests_away_and_no_others(
    model: ModelTraffic, seed: int, start: int
) -> None:
    always = msgspec.structs.replace(model, phases=[], phases_every=0.0)
    off = msgspec.structs.replace(always, phases=[(float(start), start + 9.0, 0.0)])
    before, after = (mixed([one], SECONDS, seed=seed).items for one in (always, off))
    assert after == [item for item in before if not start <= item.time < start + 9]


def test_a_day_keeps_the_mean_and_moves_the_requests_to_its_peak() -> None:
    model = ModelTraffic("a", 50.0, "constant:1,1", day=Day(depth=0.8, period=1000.0, peak=250.0))
    found = times(mixed([model], 4000.0).items) % 1000.0
    assert len(found) == pytest.approx(200_000, rel=0.02)
    counts, _ = np.histogram(found, 100)
    middles = np.arange(5, 1000, 10)
    expected = 2000 * (1 + 0.8 * np.cos(2 * np.pi * (middles - 250) / 1000))
    assert (np.abs(counts - expected) < 6 * expected**0.5).all()
    noon = ModelTraffic("a", 50.0, day=Day(depth=1.0))
    assert noon.factor(np.array([0.0, 43_200.0])).tolist() == pytest.approx([0.0, 2.0])


FILE = """
duration = 120
[[model]]
name = "chat"
rate = 2
lengths = "constant:4000,150"
cv = 4
phases = [[0, 60, 1], [60, 120, 0.0]]
phases_every = 120
day = {depth = 0.5, period = 3600, peak = 0}
[[model]]
name = "batch"
rate = 0.5
"""


def test_a_file_says_what_differs_and_the_command_what_does_not(tmp_path: Path) -> None:
    (tmp_path / "traffic.toml").write_text(FILE)
    chat, batch = read(tmp_path / "traffic.toml", cv=2.0, lengths="constant:8,4")[0]
    shown = [(0.0, 60.0, 1.0), (60.0, 120.0, 0.0)]
    day = Day(depth=0.5, period=3600.0, peak=0.0)
    assert chat == ModelTraffic("chat", 2.0, "constant:4000,150", 4.0, shown, 120.0, day)
    assert batch == ModelTraffic("batch", 0.5, "constant:8,4", 2.0)
    made = mixed([chat, batch], 120.0, length_scale=2.0)
    assert {(item.model, item.prompt_tokens, item.output_tokens) for item in made.items} == {
        ("chat", 8000, 300), ("batch", 16, 8),
    }  # fmt: skip
    write(tmp_path / "w.jsonl", made)
    head = msgspec.json.decode((tmp_path / "w.jsonl").read_bytes().splitlines()[0])["workload"]
    assert msgspec.convert(head["traffic"], list[ModelTraffic]) == [chat, batch], "all it was made from"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("rate = 2\n", "", r"traffic\.toml: model\[0\]: Object missing required field `rate`"),
        ("rate = 2", 'rate = "2"', r"traffic\.toml: model\[0\]\.rate: Expected `float`, got `str`"),
        ("rate = 2", "rate = 0", r"traffic\.toml: model 'chat': rate: 0 is not above 0"),
        ("rate = 2", "rate = nan", r"model 'chat': rate: nan"),
        ("rate = 2", "rats = 2\nrate = 2", r"model\[0\]: Object contains unknown field `rats`"),
        ("duration", "seconds", "Object contains unknown field `seconds`"),
        ('"batch"', '"chat"', r"model\[1\]\.name: 'chat' is empty or another model's"),
        ("cv = 4", "cv = 1000", r"model 'chat': cv: 1000 is not above 0 and at most 100"),
        ("constant:4000,150", "zipf:4", r"model 'chat': lengths: 'zipf:4' is not a length distribution"),
        ("[60, 120, 0.0]", "[60, 50, 0.0]", r"phases\[1\]: it ends at 50, which is not after"),
        ("[60, 120, 0.0]", "[50, 120, 0.0]", r"phases\[1\]: it begins at 50, before 60: .*in order of time"),
        ("[60, 120, 0.0]", "[60, 120]", r"model\[0\]\.phases\[1\]: Expected `array` of length 3, got 2"),
        ("[60, 120, 0.0]", "[60, 121, 0.0]", r"phases\[1\]: it ends at 121, after phases_every = 120"),
        ("1], [60", "-1], [60", r"phases\[0\]: the factor -1 is not between 0 and 1000"),
        ("phases_every = 120", "phases_every = -1", r"phases_every: -1 is not 0"),
        ("depth = 0.5", "depth = 1.5", r"day\.depth: 1\.5 is not between 0"),
        ("period = 3600", "period = 0", r"day\.period: 0 is not above 0"),
        ("peak = 0", "peak = 4000", r"day\.peak: 4000 is not within the period"),
        (FILE, "duration = 3\nmodel = []", r"traffic\.toml has no \[\[model\]\] table"),
        (FILE, "", "Object missing required field `model`"),
        (FILE, "model = 3", "model: Expected `array`, got `int`"),
        (FILE, "[[model", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(old: str, new: str, reason: str, tmp_path: Path) -> None:
    assert old in FILE
    (tmp_path / "traffic.toml").write_text(FILE.replace(old, new, 1))
    with pytest.raises(ConfigError, match=reason):
        read(tmp_path / "traffic.toml", cv=1.0, lengths="sharegpt")


@given(traffic("a"))
def test_what_is_drawn_here_may_stand_in_a_file(model: ModelTraffic) -> None:
    check([model])
