"""Runs of blocks and of work, and what a picture is bounded to."""

from hypothesis import given
from hypothesis import strategies as st

from muxd.engine.kept import Kept
from muxd.engine.recent import Recent
from muxd.engine.trace import Phase, Span
from muxd.watch import changes
from muxd.watch.changes import apply
from muxd.watch.history import History
from muxd.watch.runs import pool_runs, work_runs
from muxd.watch.schemas import AccountView, Change, DaemonView, Picture

BLOCKS = st.integers(0, 50)
ACCOUNTS = st.dictionaries(
    st.sampled_from("abcd"), st.builds(AccountView, BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCKS), max_size=4
)
EMPTY = Picture(0.0, DaemonView("", 0, 0.0, "mux", "", {}), {}, {}, {})


@given(ACCOUNTS, BLOCKS)
def test_runs_are_all_blocks_and_say_whose(accounts: dict[str, AccountView], free: int) -> None:
    runs = pool_runs(accounts, free)
    assert all(run.blocks > 0 for run in runs)
    assert sum(run.blocks for run in runs if run.kind == "free") == free
    for model, account in accounts.items():
        had = {run.kind: run.blocks for run in runs if run.model == model}
        assert sum(had.values()) == account.held + account.cached
        assert had.get("borrowed", 0) == max(0, account.held - account.quota)
        assert had.get("guaranteed", 0) <= account.guarantee
        assert had.get("guaranteed", 0) + had.get("quota", 0) <= account.quota


PHASES: list[Phase] = ["prefill", "decode"]


@st.composite
def spans(draw: st.DrawFn) -> list[Span]:
    """Of workers with one batch at a time, in the order of their ends."""
    found = []
    for model in "abc":
        now = 0.0
        for number in range(draw(st.integers(0, 30))):
            begin = now + draw(st.floats(0, 0.1))
            now = begin + draw(st.floats(0, 0.5))
            phase = draw(st.sampled_from(PHASES))
            found.append(Span(model, phase, begin, now, number, draw(st.integers(1, 100)), 1, 3))
    return sorted(found, key=lambda span: span.end or 0.0)


@given(spans(), st.integers(6, 40))
def test_runs_of_work_are_bounded_and_lose_no_batch(found: list[Span], most: int) -> None:
    runs = work_runs("cpu", found, most)
    assert len(runs) <= most
    assert sum(run.batches for run in runs) == len(found)
    assert sum(run.tokens for run in runs) == sum(span.tokens for span in found)
    assert [run.end for run in runs] == sorted(run.end for run in runs)
    for span in found:
        assert span.end is not None
        assert any(
            run.model == span.model
            and run.phase == span.phase
            and run.begin <= span.start
            and span.end <= run.end
            for run in runs
        )


def test_a_picture_grows_no_longer_than_it_may() -> None:
    picture = EMPTY
    for second in range(400):
        new = [Span("a", "decode", second + i / 50, second + i / 50 + 0.005, i, 50, 1, 1) for i in range(50)]
        picture = apply(
            picture, Change(float(second), ran=work_runs("cpu", new, 300), tokens=[{"a": float(second)}])
        )
    assert len(picture.ran) == changes.RAN
    assert picture.ran[0].end >= 399 - changes.WINDOW
    assert picture.tokens == {"a": [float(second) for second in range(280, 400)]}
    late = apply(picture, Change(10_000.0))
    assert late.ran == []


def test_history_is_what_came_between_two_samples() -> None:
    counts = {"a": 100}
    history = History(0.0, counts)
    counts["a"], counts["b"] = 150, 5
    history.sample(5.0, counts)
    assert list(history.rates) == [{"a": 10.0, "b": 1.0}]
    history.sample(10.0, counts)
    assert list(history.rates)[-1] == {}
    assert history.rate("a", 200, 10.0) == 10.0
    assert history.rate("new", 10, 10.0) == 2.0


@given(st.lists(st.integers()), st.integers(1, 10), st.integers(0, 20))
def test_what_is_kept_gives_what_came_since(values: list[int], kept: int, since: int) -> None:
    kept_values: Kept[int] = Kept(kept)
    for value in values:
        kept_values.add(value)
    assert kept_values.count == len(values)
    assert kept_values.since(since) == values[max(since, len(values) - kept) :]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.floats(0.01, 1))
def test_a_quantile_is_the_smallest_that_so_many_do_not_exceed(values: list[float], part: float) -> None:
    recent = Recent()
    assert recent.quantile(part) is None
    for value in values:
        recent.add(value)
    found = recent.quantile(part)
    assert found in values
    assert sum(value <= found for value in values) >= part * len(values)
    assert all(sum(v <= lower for v in values) < part * len(values) for lower in values if lower < found)
