"""The report's numbers, worked out by hand; and its pictures."""

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.costs import model, table

from muxd.cli.reports import table as text_table
from muxd.errors import ConfigError
from muxd.sim import plots
from muxd.sim.records import Outcome, Records
from muxd.sim.report import Report, jain, make_report, quantiles, seconds
from muxd.sim.workload import Item, Workload


def records() -> Records:
    """Two of "a" served (alone: 0.1 + 10 · 0.01 = 0.2 s), one refused; one of "b" served after the end."""
    items = [Item(0.0, "a", 100, 11), Item(1.0, "a", 100, 11), Item(2.0, "a", 100, 11), Item(3.0, "b", 10, 1)]
    found = Records(Workload(items, {"duration": 4.0}))
    found.first[0], found.first[1], found.first[3] = 0.1, 1.5, 5.0
    found.finish(0, Outcome.SERVED, 0.2)
    found.finish(1, Outcome.SERVED, 2.0)
    found.fail(2, Outcome.REFUSED, 2.0, "full")
    found.finish(3, Outcome.SERVED, 5.0)
    return found


@pytest.fixture
def report() -> Report:
    cost = table(a=model(), b=model())
    return make_report(records(), kind="simulated", policy="mux", cost=cost, scales=[1.0, 2.0, 5.0, 200.0])


def test_counts_and_throughput(report: Report) -> None:
    total, a, b = report.total, *report.models
    assert (a.model, a.requests, a.served, a.refused, a.failed) == ("a", 3, 2, 1, 0)
    assert (b.model, b.served, total.served, total.requests) == ("b", 1, 3, 4)
    assert report.seconds == 5.0
    assert total.requests_per_second == pytest.approx(3 / 5)
    assert total.tokens_per_second == pytest.approx(23 / 5)
    assert a.offered_per_second == pytest.approx(3 / 4)
    assert report.errors == {"full": 1}


def test_times(report: Report) -> None:
    a = report.models[0]
    assert a.ttft is not None
    assert a.tpot is not None
    assert a.latency is not None
    assert (a.ttft.p50, a.ttft.p99) == pytest.approx((0.1, 0.5))
    assert (a.tpot.p50, a.tpot.p99) == pytest.approx((0.01, 0.05))
    assert a.latency.mean == pytest.approx(0.6)
    assert report.models[1].tpot is None, "one token has no time per further token"


def test_slo_attainment_counts_the_refused_as_missed(report: Report) -> None:
    a, b = report.models
    assert a.slo is not None
    assert b.slo is not None
    assert a.slo.latency == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert a.slo.ttft == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert a.slo.tpot == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert b.slo.tpot == [1.0] * 4
    assert b.slo.latency == [0.0, 0.0, 0.0, 1.0], "alone 0.01 s, here 2 s"
    assert report.total.slo is not None
    assert report.total.slo.latency[-1] == pytest.approx(3 / 4)


def test_jain_is_over_what_was_served_while_requests_came(report: Report) -> None:
    assert report.jain == pytest.approx((2 / 3) ** 2 / (2 * (2 / 3) ** 2)), "a got 2/3, b nothing yet"


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_jain_lies_between_one_model_and_all_alike(values: list[float]) -> None:
    values = [round(value, 3) for value in values]
    assert 1 / len(values) - 1e-9 <= jain(values) <= 1 + 1e-9
    assert jain([3.0] * len(values)) == pytest.approx(1.0)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=300))
def test_a_quantile_is_a_value_that_occurred_and_covers_its_part(values: list[float]) -> None:
    found = quantiles(np.array(values))
    assert found is not None
    for part, quantile in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        assert quantile in values
        assert sum(value <= quantile for value in values) >= part * len(values)
        assert sum(value < quantile for value in values) < part * len(values)
    assert quantiles(np.array([np.nan])) is None


def test_without_a_profile_there_is_no_slo() -> None:
    report = make_report(records(), kind="live", policy="mux", cost=None)
    assert report.total.slo is None
    assert "WITHIN SLO" not in text_table(report)


def test_nothing_served_is_a_report_too() -> None:
    found = Records(Workload([Item(0.0, "a", 1, 1)], {}))
    found.fail(0, Outcome.FAILED, 0.1, "broken")
    report = make_report(found, kind="live", policy="mux", cost=table(a=model()))
    assert (report.total.failed, report.total.requests_per_second, report.jain) == (1, 0.0, 1.0)
    assert "1 x broken" in text_table(report)


def test_a_request_cannot_end_twice() -> None:
    found = records()
    with pytest.raises(ValueError, match="request 0 ended twice"):
        found.finish(0, Outcome.SERVED, 1.0)


def test_the_report_is_plain_data(report: Report) -> None:
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_the_table_has_a_line_for_each_model_and_the_sum(report: Report) -> None:
    lines = text_table(report).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["MODEL", "a", "b", "all"]
    assert "10.0ms" in lines[1]
    assert any(line.startswith("WITHIN SLO") for line in lines)


@pytest.mark.parametrize(
    ("value", "text"), [(0.00421, "4.21ms"), (0.038, "38.0ms"), (1.5234, "1.52s"), (214.2, "214s")]
)
def test_times_have_three_digits(value: float, text: str) -> None:
    assert seconds(value) == text


def test_a_png_is_drawn(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots.save(tmp_path / "a.png", [report, msgspec.structs.replace(report, policy="temporal")])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    figure = plots.draw([report, msgspec.structs.replace(report, policy="temporal")])
    assert [axes.get_title() for axes in figure.axes] == [
        "Throughput", "Latency, all models", "SLO attainment (latency)", "TTFT p99 by model",
    ]  # fmt: skip
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "mux, simulated", "temporal, simulated",
    ]  # fmt: skip


def test_a_page_holds_picture_and_numbers(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots.save(tmp_path / "a.html", [report])
    page = (tmp_path / "a.html").read_text()
    assert "<svg" in page
    assert "Jain index 0.500" in page
    assert "src=" not in page, "one file, nothing fetched"


def test_a_plot_needs_a_known_suffix_and_matplotlib(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"a\.pdf: a plot is a \.png or a \.html file"):
        plots.save(tmp_path / "a.pdf", [report])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'muxd\[plots\]'"):
        plots.save(tmp_path / "a.png", [report])
