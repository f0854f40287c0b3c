"""What is measured of a run, in the published form and in plain sums. A row is plain data, kept as JSON.

throughput of a model   its requests over the time of its last end, but at least the window: a model whose
                        last request comes early is not fast
plain                   the sum of those over the models
weighted                synthetic: sum of floor(rate) x throughput / models, so models below one request a
                        second count nothing; ChatLMSYS: the mean weighted by rate. Both as in its figures
in window               requests that ended while others still arrived, a second: nothing of the drain
slo                     part of all requests within scale x their latency alone on ALONE_ON devices
jain                    of the parts of its tokens that each model got served within the window
least                   the smallest such part: 0 would be a starved model
"""

from math import floor
from typing import Any

import numpy as np

from muxd.cost.table import CostTable
from muxd.placement.problem import Plan, Problem
from muxd.sim.cluster import ClusterRun
from muxd.sim.records import Outcome
from muxd.sim.report import jain, make_report

SCALES = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 17, 20, 30, 50]
Row = dict[str, Any]


def measure(run: ClusterRun, problem: Problem, alone: CostTable, kind: str) -> Row:
    records = run.records
    items = records.workload.items
    window = records.workload.duration
    names = np.array([item.model for item in items])
    tokens = np.array([item.prompt_tokens + item.output_tokens for item in items])
    served = records.outcome == Outcome.SERVED
    inside = served & (records.end <= window)
    report = make_report(records, kind="simulated", policy="", cost=alone, scales=SCALES)
    assert report.total.slo is not None
    throughput, parts = {}, {}
    for model in problem.models:
        mine = names == model.name
        last = float(records.end[mine & served].max(initial=0.0))
        throughput[model.name] = float((mine & served).sum()) / max(window, last)
        if mine.any():
            parts[model.name] = float(tokens[mine & inside].sum() / tokens[mine].sum())
    rates = {model.name: model.rate for model in problem.models}
    devices = problem.gpus.count
    return {
        "requests": len(items),
        "served": int(served.sum()),
        "refused": report.total.refused,
        "window": window,
        "offered": problem.rate,
        "plain": sum(throughput.values()),
        "weighted": weighted(throughput, rates, kind),
        "in_window": float(inside.sum()) / window,
        "slo": dict(zip(map(str, SCALES), report.total.slo.latency, strict=True)),
        "slo_models": {
            part.model: part.slo.latency[SCALES.index(8)] for part in report.models if part.slo is not None
        },
        "jain": jain(list(parts.values())),
        "least": min(parts.values()),
        "ttft": [report.total.ttft.p50, report.total.ttft.p99] if report.total.ttft else None,
        "tpot": [report.total.tpot.p50, report.total.tpot.p99] if report.total.tpot else None,
        "preemptions": records.preemptions,
        "busy": sum(unit.load.degree * unit.busy / unit.seconds for unit in run.units if unit.seconds)
        / devices,
        "throughput": throughput,
        "fewest": int(min((names == model.name).sum() for model in problem.models)),
    }


def weighted(throughput: dict[str, float], rates: dict[str, float], kind: str) -> float:
    if kind == "sharegpt":
        return sum(floor(rates[name]) * value for name, value in throughput.items()) / len(rates)
    return sum(rates[name] * value for name, value in throughput.items()) / sum(rates.values())


def shape(plan: Plan) -> list[dict[str, Any]]:
    """The plan in a few words a unit."""
    return [
        {
            "gpus": unit.degree,
            "models": {member.model: member.decode_share for member in unit.members},
            "pool_gb": round(unit.pool_bytes / 1e9, 1),
        }
        for unit in plan.units
        if unit.members
    ]
