"""How `muxctl simulate` and `muxctl bench` show a report: a table, JSON, plots. No work on import."""

from pathlib import Path

import msgspec
import typer

from muxd.cli.tables import render
from muxd.errors import ConfigError
from muxd.sim import plots
from muxd.sim.report import ModelReport, Quantiles, Report, seconds

_HEADERS = ("MODEL", "REQUESTS", "SERVED", "REFUSED", "FAILED", "OFFERED/S", "REQ/S", "TOK/S")
_TIMES = ("TTFT50", "TTFT90", "TTFT99", "TPOT50", "TPOT90", "TPOT99", "LAT50", "LAT90", "LAT99")
_SHOWN_SCALES = (2.0, 4.0, 8.0, 12.0, 20.0)


def table(report: Report) -> str:
    """The models and their sum, then the SLO curves, then what is one number."""
    rows = [_row(part) for part in [*report.models, report.total]]
    parts = [render((*_HEADERS, *_TIMES), rows)]
    if report.total.slo is not None:
        parts.append(_slo(report))
    parts.append("\n".join(f"{name:<12}   {value}" for name, value in _numbers(report).items()))
    return "\n\n".join(parts)


def deliver(report: Report, json_file: Path | None, *pictures: Path | None) -> None:
    """Print the report and write the files that were asked for. Raises ConfigError for one that cannot be."""
    text = msgspec.json.format(msgspec.json.encode(report)).decode()
    wanted = [picture for picture in pictures if picture is not None]
    typer.echo(text if str(json_file) == "-" else table(report))
    try:
        if json_file is not None and str(json_file) != "-":
            json_file.write_text(text + "\n")
        for picture in wanted:
            plots.save(picture, [report])
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from None


def _row(part: ModelReport) -> list[str]:
    counts = (part.requests, part.served, part.refused, part.failed)
    rates = (part.offered_per_second, part.requests_per_second, part.tokens_per_second)
    times = [text for found in (part.ttft, part.tpot, part.latency) for text in _quantiles(found)]
    return [part.model, *map(str, counts), *(f"{rate:.2f}" for rate in rates), *times]


def _quantiles(found: Quantiles | None) -> list[str]:
    return [seconds(value) for value in (found.p50, found.p90, found.p99)] if found else ["-"] * 3


def _slo(report: Report) -> str:
    assert report.total.slo is not None
    picks = [i for i, scale in enumerate(report.scales) if scale in _SHOWN_SCALES]
    headers = ("WITHIN SLO", *(f"{report.scales[i]:g}x" for i in picks))
    curves = {
        "latency": report.total.slo.latency,
        "ttft": report.total.slo.ttft,
        "tpot": report.total.slo.tpot,
    }
    rows = [[name, *(f"{100 * curve[i]:.1f}%" for i in picks)] for name, curve in curves.items()]
    for part in report.models:
        if part.slo is not None:
            rows.append([f"latency, {part.model}", *(f"{100 * part.slo.latency[i]:.1f}%" for i in picks)])
    return render(headers, rows)


def _numbers(report: Report) -> dict[str, str]:
    found = {
        "run": f"{report.kind}, policy {report.policy}",
        "time": f"{report.seconds:.1f}s from start to last token",
        "fairness": f"Jain index {report.jain:.3f} over rate-normalised service",
        "preempted": str(report.preemptions),
        **{name: str(value) for name, value in report.notes.items()},
    }
    for why, count in report.errors.items():
        found.setdefault("errors", "")
        found["errors"] += f"{count} x {why}; "
    return found
