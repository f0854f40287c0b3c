"""One workload under several systems, and tables of what was run: for ``synthetic.py``, ``chatlmsys.py``
and ``ablations.py``."""

import argparse
from collections.abc import Callable
from pathlib import Path

import setting
from cells import Row, Runs, markdown
from measures import measure, shape
from numbers_published import Point, Three
from setting import Runtime
from systems import SYSTEMS, Planner, terms

from muxd.cost.published import Published
from muxd.placement.problem import Problem
from muxd.sim.cluster import Cluster

HEADS = ["SYSTEM", "OFFERED/S", "WEIGHTED", "PLAIN", "IN WINDOW", "SLO 8x %", "99 % AT", "JAIN", "LEAST",
         "TTFT p50/p99 s", "TPOT p50/p99 ms", "PREEMPTED", "BUSY %"]  # fmt: skip
PUBLISHED = {"spatial-fixed": 0, "temporal": 1, "temporal-released": 1, "mux-released": 2, "mux": 2}


def parser(doc: str | None, window: float) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--data", type=Path, help="folder of the published data, else MUXD_PUBLISHED")
    made.add_argument("--out", type=Path, required=True, help="folder of tables, pictures and kept runs")
    made.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=[*SYSTEMS, "greedy", "naive"])
    made.add_argument("--window", type=float, default=window, help="seconds of arrivals")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--runtime", choices=("table", "muxserve"), default="table",
                      help="muxserve: with 0.1 ms of scheduling a sequence and step")  # fmt: skip
    made.add_argument("--overbook", type=int, default=setting.OVERBOOK)
    return made


def run_cell(runs: Runs, name: str, problem: Problem, kind: str, args: argparse.Namespace) -> None:
    """Every system of ``args`` that was not run yet."""
    folder = setting.data(args.data)
    costs, table = setting.costs(folder, args.runtime), setting.costs(folder, "table")
    assert isinstance(table, Published)
    planner = Planner(problem, costs, table, kind)
    for system in args.systems:
        key = key_of(name, system, args)
        runs.get(key, _run(planner, system, problem, kind, costs, args))


def key_of(name: str, system: str, args: argparse.Namespace) -> str:
    """Everything that changes a run's numbers."""
    words = [name, f"window {args.window:g}", f"seed {args.seed}", args.runtime]
    return ", ".join([*words, f"overbook {args.overbook}", system])


def described(args: argparse.Namespace) -> str:
    """What all runs of a table have in common."""
    return f"Window {args.window:g} s, seed {args.seed}, runtime {args.runtime}, overbook {args.overbook}.\n"


def _run(
    planner: Planner,
    system: str,
    problem: Problem,
    kind: str,
    costs: Published | Runtime,
    args: argparse.Namespace,
) -> Callable[[], Row]:
    def make() -> Row:
        plan = planner.plan(system)
        workload = setting.traffic(problem, kind, args.window, args.seed)
        cluster = Cluster(problem.models, costs, problem.gpus.kind)
        done = cluster.run(planner.units(system), workload, terms(system, args.overbook))
        table = setting.costs(setting.data(args.data), "table")
        row = measure(done, problem, setting.alone(problem, table), kind)
        return {**row, "predicted": plan.served, "plan": shape(plan)}

    return make


# ---- tables ------------------------------------------------------------------------------------------


def table(rows: dict[str, Row]) -> str:
    """One line a system."""
    lines = []
    for system, row in rows.items():
        lines.append(
            [
                system,
                f"{row['offered']:.1f}",
                f"{row['weighted']:.2f}",
                f"{row['plain']:.1f}",
                f"{row['in_window']:.1f}",
                f"{100 * row['slo']['8']:.1f}",
                reached(row),
                f"{row['jain']:.3f}",
                f"{row['least']:.2f}",
                "-" if not row["ttft"] else f"{row['ttft'][0]:.2f} / {row['ttft'][1]:.1f}",
                "-" if not row["tpot"] else f"{1e3 * row['tpot'][0]:.0f} / {1e3 * row['tpot'][1]:.0f}",
                str(row["preemptions"]),
                f"{100 * row['busy']:.0f}",
            ]
        )
    return markdown(HEADS, lines)


def reached(row: Row, part: float = 0.99) -> str:
    """The smallest scale that so many requests keep."""
    scales: dict[str, float] = row["slo"]
    return next((scale for scale, value in scales.items() if value >= part), ">" + list(scales)[-1])


def over(three: Three | None, place: int) -> float | None:
    """The published mux over the published system at ``place``; None where either is not given."""
    base = None if three is None else three[place]
    return three[2] / base if three is not None and base else None


def ratios(rows: dict[str, Row], point: Point | None) -> list[str]:
    """mux over each other system, ours beside the published."""
    lines = []
    ours = rows.get("mux")
    for system, other in rows.items():
        if ours is None or system == "mux":
            continue
        text = (
            f"mux / {system}: weighted {ours['weighted'] / other['weighted']:.2f}, "
            f"plain {ours['plain'] / other['plain']:.2f}, "
            f"in window {ours['in_window'] / other['in_window']:.2f}, "
            f"SLO 8x {ours['slo']['8'] / max(1e-9, other['slo']['8']):.2f}"
        )
        place = PUBLISHED.get(system)
        if point is not None and place in (0, 1):
            weighted, plain, slo = (over(three, place) for three in point)
            if weighted and plain:
                text += f" (published weighted {weighted:.2f}, plain {plain:.2f}"
                text += f", SLO 8x {slo:.2f})" if slo is not None else ")"
        lines.append("* " + text)
    return lines


def published_line(point: Point) -> str:
    heads = ["PUBLISHED", "WEIGHTED", "PLAIN", "SLO 8x %"]
    lines = []
    for i, system in enumerate(("spatial", "temporal", "MuxServe")):
        slo = point.slo[i] if point.slo else None
        values = (point.weighted[i], point.plain[i], slo)
        lines.append([system, *("-" if value is None else f"{value:g}" for value in values)])
    return markdown(heads, lines)
