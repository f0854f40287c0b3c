"""Reports as a picture: a PNG, or one HTML file with the picture and the numbers inside.

Needs matplotlib, the extra ``plots``; nothing else in muxd does. Several reports are drawn side by side, one
colour each.
"""

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from muxd.errors import ConfigError
from muxd.sim.report import ModelReport, Report, seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MANY_MODELS = 12  # above, only the most popular are drawn one by one
_STYLE = "<style>body{font:14px sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}" \
    "td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ccc}td:first-child{text-align:left}" \
    "svg{max-width:100%;height:auto}</style>"  # fmt: skip


def save(path: Path, reports: Sequence[Report]) -> None:
    """Write ``path`` (.png or .html). Raises ConfigError for another suffix or without matplotlib."""
    if path.suffix not in (".png", ".html"):
        raise ConfigError(f"{path}: a plot is a .png or a .html file")
    figure = draw(reports)
    if path.suffix == ".png":
        figure.savefig(path, dpi=120)
        return
    picture = io.StringIO()
    figure.savefig(picture, format="svg")
    svg = picture.getvalue()
    body = "".join(_html_table(report) for report in reports)
    title = escape("muxd: " + ", ".join(_label(report) for report in reports))
    path.write_text(
        f"<!doctype html><meta charset=utf-8><title>{title}</title>{_STYLE}<h1>{title}</h1>"
        f"{svg[svg.index('<svg') :]}{body}"
    )


def draw(reports: Sequence[Report]) -> "Figure":
    """Four panels: throughput, latency quantiles, SLO attainment by scale, TTFT p99 by model."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'muxd[plots]'") from None
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    axes = figure.subplots(2, 2)
    figure.suptitle(_title(reports[0]))
    _throughput(axes[0][0], reports)
    _latencies(axes[0][1], reports)
    _slo(axes[1][0], reports)
    _by_model(axes[1][1], reports)
    handles, labels = axes[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(6, len(labels))))
    return figure


def _label(report: Report) -> str:
    return f"{report.policy}, {report.kind}"


def _title(report: Report) -> str:
    words = report.workload
    known = [f"{name} {words[name]}" for name in ("rate", "alpha", "cv", "lengths") if name in words]
    return f"{report.total.requests} requests, {len(report.models)} models" + (
        f" ({', '.join(known)})" if known else ""
    )


def _shown(reports: Sequence[Report]) -> list[str]:
    return [part.model for part in reports[0].models[:_MANY_MODELS]]


def _part(report: Report, model: str) -> ModelReport | None:
    return next((part for part in [report.total, *report.models] if part.model == model), None)


def _bars(axes: "Axes", groups: list[str], series: list[tuple[str, list[float]]]) -> None:
    """Grouped bars: one group per name in ``groups``, one colour per series."""
    width = 0.8 / len(series)
    for i, (label, values) in enumerate(series):
        places = [place - 0.4 + (i + 0.5) * width for place in range(len(groups))]
        axes.bar(places, values, width, label=label)
    axes.set_xticks(range(len(groups)), groups, rotation=30 if max(map(len, groups)) > 6 else 0, ha="right")
    axes.grid(axis="y", alpha=0.3)


def _throughput(axes: "Axes", reports: Sequence[Report]) -> None:
    models = _shown(reports)

    def values(report: Report) -> list[float]:
        parts = (_part(report, model) for model in [*models, "all"])
        return [part.tokens_per_second if part else 0.0 for part in parts]

    _bars(axes, [*models, "all"], [(_label(report), values(report)) for report in reports])
    axes.set_ylabel("tokens/s")
    axes.set_title("Throughput")


def _latencies(axes: "Axes", reports: Sequence[Report]) -> None:
    names = [f"{kind} {part}" for kind in ("TTFT", "TPOT", "latency") for part in ("p50", "p90", "p99")]

    def values(report: Report) -> list[float]:
        found = (report.total.ttft, report.total.tpot, report.total.latency)
        return [value for q in found for value in ((q.p50, q.p90, q.p99) if q else (0.0, 0.0, 0.0))]

    _bars(axes, names, [(_label(report), values(report)) for report in reports])
    axes.set_yscale("log")
    axes.set_ylabel("seconds")
    axes.set_title("Latency, all models")


def _slo(axes: "Axes", reports: Sequence[Report]) -> None:
    for report in reports:
        if report.total.slo is not None:
            axes.plot(report.scales, [100 * part for part in report.total.slo.latency], marker="o")
        else:
            axes.plot([], [])  # keeps the colours in step
    axes.set_ylim(0, 105)
    axes.set_xlabel("SLO scale (times the latency alone on the device)")
    axes.set_ylabel("requests inside, %")
    axes.set_title("SLO attainment (latency)")
    axes.grid(alpha=0.3)


def _by_model(axes: "Axes", reports: Sequence[Report]) -> None:
    models = _shown(reports)

    def values(report: Report) -> list[float]:
        parts = (_part(report, model) for model in models)
        return [part.ttft.p99 if part and part.ttft else 0.0 for part in parts]

    _bars(axes, models, [(_label(report), values(report)) for report in reports])
    axes.set_ylabel("seconds")
    axes.set_title(
        "TTFT p99 by model" + (", the most popular" if len(reports[0].models) > len(models) else "")
    )


def _html_table(report: Report) -> str:
    heads = ("model", "requests", "served", "refused", "failed", "req/s", "tokens/s", "TTFT p50", "TTFT p99",
             "TPOT p50", "TPOT p99", "latency p50", "latency p99")  # fmt: skip
    rows = []
    for part in [*report.models, report.total]:
        cells = [part.model, part.requests, part.served, part.refused, part.failed]
        rates = [f"{part.requests_per_second:.2f}", f"{part.tokens_per_second:.1f}"]
        found = (part.ttft, part.tpot, part.latency)
        times = [text for q in found for text in ((seconds(q.p50), seconds(q.p99)) if q else ("-", "-"))]
        rows.append("".join(f"<td>{escape(str(cell))}</td>" for cell in [*cells, *rates, *times]))
    head = "".join(f"<th>{name}</th>" for name in heads)
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    caption = escape(f"{_label(report)}: {report.seconds:.1f} s, Jain index {report.jain:.3f}")
    return f"<h2>{caption}</h2><table><tr>{head}</tr>{lines}</table>"
