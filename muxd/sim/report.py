"""One report for simulated and live runs: throughput, latencies, SLO attainment, fairness. Plain data.

Definitions, so that two reports can be compared:

* seconds: from the workload's start to the last end of a served request.
* throughput: requests served, and tokens of their answers, divided by seconds.
* TTFT: from sending to the first token; TPOT: (last - first token) / (answer tokens - 1); latency: from
  sending to the last token. Quantiles are over served requests, by the nearest rank.
* SLO at scale s: a request attains it if it was served within s times what it would take alone on the device
  at 100 % share (``cost.table.CostTable.alone*``: no queue, batch of one). Refused and failed requests miss
  at every scale. MuxServe's SLO is the one on latency; here TTFT and TPOT have their own curves as well.
* Jain index: (Σx)² / (n · Σx²) over models with requests, x = tokens (in and out) of requests served by the
  time arrivals end, divided by the tokens asked for until then. 1: every model gets the same part of what it
  asks for; 1/n: one model gets everything.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from muxd.cost.table import CostTable
from muxd.sim.records import Outcome, Records

Seconds = NDArray[np.float64]
Mask = NDArray[np.bool_]

SCALES = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0]
ALL = "all"


class Quantiles(Struct, frozen=True):
    """Seconds."""

    mean: float
    p50: float
    p90: float
    p99: float


class Attainment(Struct, frozen=True):
    """Part of all requests, 0 to 1, within each of ``Report.scales`` times the base."""

    ttft: list[float]
    tpot: list[float]
    latency: list[float]


class ModelReport(Struct, frozen=True):
    """One model, or all together. Quantiles are None when nothing was served; ``slo`` without a profile."""

    model: str
    requests: int
    served: int
    refused: int
    failed: int
    offered_per_second: float
    requests_per_second: float
    tokens_per_second: float
    ttft: Quantiles | None
    tpot: Quantiles | None
    latency: Quantiles | None
    slo: Attainment | None


class Report(Struct, frozen=True):
    """The whole run. ``models``: most requests first; ``total`` is about all of them."""

    kind: str  # "simulated" or "live"
    policy: str
    workload: dict[str, Any]
    seconds: float
    total: ModelReport
    models: list[ModelReport]
    jain: float
    scales: list[float]
    preemptions: int
    errors: dict[str, int]
    notes: dict[str, Any]


def make_report(
    records: Records,
    *,
    kind: str,
    policy: str,
    cost: CostTable | None,
    scales: Sequence[float] = SCALES,
    notes: dict[str, Any] | None = None,
) -> Report:
    """``cost`` gives the bases of the SLOs; without one there are none."""
    columns = _Columns(records, cost)
    served = records.outcome == Outcome.SERVED
    seconds = float(records.end[served].max()) if served.any() else records.workload.duration
    everything = np.ones(len(served), np.bool_)
    parts = [(name, columns.model == i) for i, name in enumerate(columns.names)]
    reports = [_part(columns, name, mask, seconds, scales) for name, mask in [(ALL, everything), *parts]]
    return Report(
        kind=kind,
        policy=policy,
        workload=records.workload.header,
        seconds=seconds,
        total=reports[0],
        models=reports[1:],
        jain=_jain(columns, [mask for _, mask in parts]),
        scales=list(scales),
        preemptions=records.preemptions,
        errors=records.errors,
        notes=notes or {},
    )


class _Columns:
    """The workload and its records as arrays, one entry a request."""

    def __init__(self, records: Records, cost: CostTable | None):
        items = records.workload.items
        self.names = records.workload.models
        number = {name: i for i, name in enumerate(self.names)}
        self.model = np.array([number[item.model] for item in items])
        self.prompt = np.array([item.prompt_tokens for item in items])
        self.output = np.array([item.output_tokens for item in items])
        self.outcome, self.end = records.outcome, records.end
        self.arrivals_end = records.workload.duration
        self.ttft: Seconds = records.first - records.sent
        self.latency: Seconds = records.end - records.sent
        self.tpot: Seconds = np.where(
            self.output > 1, (records.end - records.first) / np.maximum(1, self.output - 1), np.nan
        )
        self.base: tuple[Seconds, Seconds] | None = None
        if cost is not None:
            asked = [(item.model, item.prompt_tokens, item.output_tokens) for item in items]
            self.base = (
                np.array([cost.alone_ttft(model, prompt) for model, prompt, _ in asked]),
                np.array([cost.alone_tpot(*one) for one in asked]),
            )


def _part(columns: _Columns, name: str, mask: Mask, seconds: float, scales: Sequence[float]) -> ModelReport:
    served = mask & (columns.outcome == Outcome.SERVED)
    return ModelReport(
        model=name,
        requests=int(mask.sum()),
        served=int(served.sum()),
        refused=int((mask & (columns.outcome == Outcome.REFUSED)).sum()),
        failed=int((mask & (columns.outcome == Outcome.FAILED)).sum()),
        offered_per_second=float(mask.sum() / columns.arrivals_end) if columns.arrivals_end else 0.0,
        requests_per_second=float(served.sum() / seconds) if seconds else 0.0,
        tokens_per_second=float(columns.output[served].sum() / seconds) if seconds else 0.0,
        ttft=quantiles(columns.ttft[served]),
        tpot=quantiles(columns.tpot[served]),
        latency=quantiles(columns.latency[served]),
        slo=_attainment(columns, mask, served, scales),
    )


def quantiles(values: Seconds) -> Quantiles | None:
    """By nearest rank: the smallest value that at least that part of all values does not exceed."""
    values = np.sort(values[~np.isnan(values)])
    if not len(values):
        return None
    p50, p90, p99 = (float(values[ceil(part * len(values)) - 1]) for part in (0.5, 0.9, 0.99))
    return Quantiles(float(values.mean()), p50, p90, p99)


def _attainment(columns: _Columns, mask: Mask, served: Mask, scales: Sequence[float]) -> Attainment | None:
    if columns.base is None:
        return None
    ttft, tpot = (base[served] for base in columns.base)
    latency = ttft + (columns.output[served] - 1) * tpot
    count = int(mask.sum())

    def curve(values: Seconds, base: Seconds) -> list[float]:
        # A TPOT that does not exist (one token) keeps every promise.
        return [float((np.isnan(values) | (values <= scale * base)).sum() / count) for scale in scales]

    return Attainment(
        curve(columns.ttft[served], ttft),
        curve(columns.tpot[served], tpot),
        curve(columns.latency[served], latency),
    )


def _jain(columns: _Columns, masks: list[Mask]) -> float:
    tokens = columns.prompt + columns.output
    in_time = (columns.outcome == Outcome.SERVED) & (columns.end <= columns.arrivals_end)
    parts = [tokens[mask & in_time].sum() / tokens[mask].sum() for mask in masks]
    return jain(parts)


def jain(values: Sequence[float]) -> float:
    """R. Jain, D. Chiu, W. Hawe, 1984. 1 when all are equal, also when all are 0."""
    total, squares = float(sum(values)), float(sum(value**2 for value in values))
    return total**2 / (len(values) * squares) if squares else 1.0


def seconds(value: float) -> str:
    """Three digits: "4.21ms", "38.0ms", "1.52s", "214s"."""
    value, unit = (value * 1000, "ms") if value < 1 else (value, "s")
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}{unit}"
