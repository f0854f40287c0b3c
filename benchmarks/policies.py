"""The same workload under several policies, simulated and live: a table, JSON, and one plot.

    python benchmarks/policies.py --config muxd.toml --cost cost.json --workload W.jsonl \\
        [--device cuda:0] [--policies mux temporal spatial] [--only simulated]
        [--json F] [--markdown F.md] [--plot F.png]

The last columns are requests inside the SLO (latency within --scale times alone on the device), and how many
times the better baseline mux has of them.
"""

import argparse
import os
import sys
from pathlib import Path

import msgspec
from provenance import markdown_table
from sim_vs_live import live

from muxd.cli.simulate import cost_table, run, swapping
from muxd.cli.tables import render
from muxd.config_load import load
from muxd.sim.plots import save
from muxd.sim.report import Report, seconds
from muxd.sim.workload import read

HEADS = (
    "POLICY",
    "KIND",
    "SERVED",
    "REFUSED",
    "REQ/S",
    "TOK/S",
    "TTFT50",
    "TTFT99",
    "TPOT99",
    "LAT90",
    "JAIN",
)


def row(report: Report, scale: float) -> list[str]:
    total = report.total
    times = [
        seconds(value) if found is not None else "-"
        for found, value in (
            (total.ttft, total.ttft.p50 if total.ttft else 0.0),
            (total.ttft, total.ttft.p99 if total.ttft else 0.0),
            (total.tpot, total.tpot.p99 if total.tpot else 0.0),
            (total.latency, total.latency.p90 if total.latency else 0.0),
        )
    ]
    rates = [f"{total.requests_per_second:.2f}", f"{total.tokens_per_second:.1f}"]
    cells = [report.policy, report.kind, str(total.served), str(total.refused), *rates, *times]
    return [*cells, f"{report.jain:.3f}", f"{100 * inside(report, scale):.1f}%"]


def inside(report: Report, scale: float) -> float:
    """Part of all requests within ``scale`` times their latency alone."""
    assert report.total.slo is not None
    return report.total.slo.latency[report.scales.index(scale)]


def verdict(reports: list[Report], scale: float) -> list[str]:
    """mux against the better of the others, for each kind of run."""
    lines = []
    for kind in dict.fromkeys(report.kind for report in reports):
        by_policy = {report.policy: report for report in reports if report.kind == kind}
        ours, others = by_policy.pop("mux", None), list(by_policy.values())
        if ours is None or not others:
            continue
        best = max(inside(report, scale) for report in others)
        ratio = f"{inside(ours, scale) / best:.2f}" if best else "inf"
        slower = min(ours.total.tokens_per_second / other.total.tokens_per_second for other in others)
        lines.append(
            f"{kind}: inside the SLO at {scale:g}x, mux has {ratio} times the better baseline "
            f"({100 * best:.1f}%); throughput at least {slower:.2f} times each"
        )
    return lines


def markdown(reports: list[Report], scale: float) -> str:
    rows = [row(report, scale) for report in reports]
    return "\n".join([markdown_table([*HEADS, f"IN SLO {scale:g}x"], rows), "", *verdict(reports, scale), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--cost", type=Path, required=True)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--device", help="where the daemons run, instead of what the configuration says")
    parser.add_argument("--policies", nargs="+", default=["mux", "temporal", "spatial"])
    parser.add_argument("--only", choices=("simulated", "live"))
    parser.add_argument("--scale", type=float, default=8.0, help="one of the report's scales")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="the table, for docs/measurements.md")
    parser.add_argument("--plot", type=Path, help=".png or .html")
    args = parser.parse_args()
    if args.device:
        os.environ["MUXD_DEVICE"] = args.device  # the daemons' setting, stronger than their file
    settings, workload = load(args.config), read(args.workload)
    cost = cost_table(args.cost, settings, [])
    reports = []
    for policy in args.policies:
        if args.only != "live":
            kind = swapping(cost, workload.models) if policy == "swap" else policy
            reports.append(run(workload, cost, settings, kind))
        if args.only != "simulated" and policy != "swap":  # of the simulator alone
            reports.append(live(args.config, settings, policy, workload, cost))
        print("  ".join(row(reports[-1], args.scale)), file=sys.stderr, flush=True)
        if args.json:  # after every policy: a run that is cut short keeps what it found
            args.json.write_bytes(msgspec.json.format(msgspec.json.encode(reports)))
        if args.markdown:
            args.markdown.write_text(markdown(reports, args.scale))
    print(render((*HEADS, f"IN SLO {args.scale:g}x"), [row(report, args.scale) for report in reports]))
    print("\n".join(verdict(reports, args.scale)))
    if args.plot:
        save(args.plot, reports)


if __name__ == "__main__":
    main()
