"""MuxServe's ablations, simulated over its table of an A100. One command each:

    python benchmarks/published/ablations.py placement  --data DIR --out OUT
    python benchmarks/published/ablations.py scheduling --data DIR --out OUT
    python benchmarks/published/ablations.py pool       --data DIR --out OUT
    python benchmarks/published/ablations.py sharing    --data DIR --out OUT
    python benchmarks/published/ablations.py phases     --data DIR --out OUT

placement   ours, greedy as in the paper and as released, against naive greedy (its figure 8): 4 models on 8
            GPUs, 7 models on 16, half of them asked for by 75 % of the requests. Sizes are not published.
scheduling  mux against round robin and first come first served (its figure 9): 65B beside 30B, and 30B, 13B,
            7B with lengths 2:1:1 and a pool of a fifth of the memory, each on four GPUs.
pool        one pool against a fixed part for each model, by the known rates and equal: 4 models on 4 GPUs.
sharing     batches of several models beside each other against one batch at a time, by two orders: same unit.
phases      prefill and decode of the same model beside each other in two processes (MuxServe's phase
            separation) against one process that does both in turn: the same units.
"""

from argparse import Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import setting
from cells import Row, Runs, markdown, save
from compare import described, key_of, parser, run_cell, table
from measures import measure
from msgspec import structs
from systems import terms

from muxd.cost.estimate import Costs
from muxd.placement.estimator import Estimator
from muxd.placement.planner import finished
from muxd.placement.problem import Gpus, Mesh, Problem, UnitLoad, units
from muxd.sim.cluster import Cluster, ClusterRun
from muxd.sim.records import Outcome
from muxd.sim.workload import Workload

WINDOW = 120.0
SHAREGPT = setting.LENGTHS["sharegpt"]
# (name, sizes with the popular ones first, popular, devices, hosts, requests a second)
CROWDS = [
    ("4 models on 8", ["llama-7b", "llama-13b", "llama-7b", "llama-30b"], 2, 8, 1, (30.0, 45.0, 60.0)),
    ("7 models on 16",
     ["llama-7b", "llama-13b", "llama-30b", "llama-7b", "llama-7b", "llama-13b", "llama-65b"],
     3, 8, 2, (30.0, 45.0, 60.0)),
]  # fmt: skip
POPULAR = 0.75


class Case(NamedTuple):
    """One unit: its models, and each one's fixed lengths (else ShareGPT's)."""

    name: str
    problem: Problem
    lengths: tuple[tuple[int, int], ...] = ()
    pool_part: float = 1.0  # of a device's memory at most


def single(name: str, models: list[tuple[str, float, tuple[int, int]]], gpus: int, part: float = 1.0) -> Case:
    loads = tuple(
        setting.load(f"{size.removeprefix('llama-')}-{i}", size, rate, means)
        for i, (size, rate, means) in enumerate(models)
    )
    problem = Problem(loads, Gpus("A100-80G", 80 * setting.GB, gpus), setting.OVERBOOK)
    return Case(name, problem, tuple(means for _, _, means in models), part)


FAIRNESS = [
    single("65B and 30B", [("llama-65b", 1.0, (778, 251)), ("llama-30b", 8.0, (128, 126))], 4),
    single("30B, 13B and 7B",
           [("llama-30b", 2.0, (322, 676)), ("llama-13b", 8.0, SHAREGPT), ("llama-7b", 8.0, SHAREGPT)],
           4, 0.2),
]  # fmt: skip


def four(alpha: float, most: float) -> Case:
    sizes = ["llama-7b", "llama-7b", "llama-13b", "llama-13b"]
    models = [(size, most * (i + 1) ** -alpha, SHAREGPT) for i, size in enumerate(sizes)]
    case = single(f"alpha {alpha:g}, most popular {most:g}/s", models, 4)
    return case._replace(lengths=())


FOUR = [(0.9, 12.0), (0.9, 16.0), (0.9, 20.0), (2.1, 20.0), (2.1, 26.0), (2.1, 32.0)]


def main() -> None:
    options = parser(__doc__, WINDOW)
    options.add_argument("what", choices=list(EXPERIMENTS))
    args = options.parse_args()
    setting.data(args.data)
    lines = EXPERIMENTS[args.what](Runs(args.out), args)
    text = "\n".join([f"# Ablation: {args.what}\n", described(args), *lines])
    (args.out / f"ablation-{args.what}.md").write_text(text)
    print(text)


# ---- placement ---------------------------------------------------------------------------------------


def crowd(sizes: list[str], popular: int, gpus: Gpus, rate: float) -> Problem:
    parts = [POPULAR / popular] * popular + [(1 - POPULAR) / (len(sizes) - popular)] * (len(sizes) - popular)
    models = tuple(
        setting.load(f"llm-{i}", size, rate * part, SHAREGPT)
        for i, (size, part) in enumerate(zip(sizes, parts, strict=True))
    )
    return Problem(models, gpus, setting.OVERBOOK)


def placement(runs: Runs, args: Namespace) -> list[str]:
    args.systems = ["naive", "greedy", "mux-released", "mux"]
    text, bars = [], {}
    for name, sizes, popular, per_host, hosts, rates in CROWDS:
        for rate in rates:
            problem = crowd(sizes, popular, Gpus("A100-80G", 80 * setting.GB, per_host, hosts), rate)
            cell = f"{name}, {rate:g}/s"
            run_cell(runs, cell, problem, "sharegpt", args)
            rows = {system: runs.find(key_of(cell, system, args)) or {} for system in args.systems}
            bars[cell] = rows
            text += [f"## {cell}\n", table(rows)]
            text += [
                f"* {s} / naive: in window {_over(rows[s], rows['naive'])}" for s in rows if s != "naive"
            ]
            text.append("")
    draw(args, "placement", bars)
    return text


def _over(row: Row, base: Row) -> str:
    return (
        f"{row['in_window'] / base['in_window']:.2f}, plain {row['plain'] / base['plain']:.2f}, "
        f"SLO 8x {row['slo']['8'] / max(1e-9, base['slo']['8']):.2f}"
    )


# ---- one unit ----------------------------------------------------------------------------------------


def unit_of(case: Case, costs: Costs, shares: tuple[int, ...] | None = None) -> UnitLoad:
    """All models of the case on all its devices, at equal parts unless given."""
    estimator = Estimator(case.problem, costs)
    models = tuple(range(len(case.problem.models)))
    gpus = case.problem.gpus.count
    parts = shares or estimator.shares(gpus, models)
    assert parts is not None
    (unit,) = units(finished("by hand", estimator, (Mesh(0, gpus, models, parts),)))
    most = int(case.pool_part * case.problem.gpus.memory)
    return structs.replace(unit, pool_bytes=min(most, unit.pool_bytes))


def traffic(case: Case, args: Namespace) -> Workload:
    """Poisson; lengths are the case's own constants where it has some."""
    made = setting.traffic(case.problem, "sharegpt", args.window, args.seed)
    if not case.lengths:
        return made
    own = {model.name: means for model, means in zip(case.problem.models, case.lengths, strict=True)}
    items = [
        structs.replace(item, prompt_tokens=own[item.model][0], output_tokens=own[item.model][1])
        for item in made.items
    ]
    return Workload(items, made.header)


def run_unit(
    case: Case,
    unit: UnitLoad,
    policy: str,
    args: Namespace,
    *,
    split: bool = False,
    overbook: int,
    apart: bool = False,
) -> tuple[ClusterRun, Row]:
    """``split``: the pool into fixed parts. ``apart``: a process for each phase of a model."""
    folder = setting.data(args.data)
    costs = setting.costs(folder, args.runtime)
    how = terms("mux", overbook)
    scheduler = structs.replace(how.scheduler, split_phases="yes" if apart else "no")
    how = structs.replace(how, policy=policy, split=split, scheduler=scheduler)
    cluster = Cluster(case.problem.models, costs, case.problem.gpus.kind)
    done = cluster.run([unit], traffic(case, args), how)
    alone = setting.alone(case.problem, setting.costs(folder, "table"))
    return done, measure(done, case.problem, alone, "sharegpt")


# ---- scheduling --------------------------------------------------------------------------------------


def scheduling(runs: Runs, args: Namespace) -> list[str]:
    text, bars = [], {}
    for case in FAIRNESS:
        rows = {}
        for policy in ("fcfs", "round_robin", "mux"):
            key = key_of(f"fairness {case.name}", policy, args)
            rows[policy] = runs.get(key, _fairness(case, policy, args))
        bars[case.name] = rows
        text += [f"## {case.name}\n", table(rows), _until_idle(case, rows)]
        text += [f"* mux / {other}: until the first model idles "
                 f"{rows['mux']['early_rate'] / rows[other]['early_rate']:.2f}, in window and plain "
                 f"{_over(rows['mux'], rows[other])}" for other in ("round_robin", "fcfs")]  # fmt: skip
        text.append("")
    text.append(
        "Published (65B and 30B): FCFS 78 + 653 in 186 s, 3.92/s; round robin 40 + 628 in 115 s, 5.81/s; "
        "ADBS 11 + 640 in 87 s, 7.48/s; tokens held 46:54, 46:54, 18:82."
    )
    draw(args, "scheduling", bars)
    return text


def _fairness(case: Case, policy: str, args: Namespace) -> Callable[[], Row]:
    def make() -> Row:
        unit = unit_of(case, setting.costs(setting.data(args.data), args.runtime))
        done, row = run_unit(case, unit, policy, args, overbook=args.overbook)
        return {**row, **early(done, case), "shares": list(unit.decode_shares)}

    return make


def early(done: ClusterRun, case: Case) -> Row:
    """Until 0.8 of the time the first model has nothing left to do, as MuxServe counts: requests ended, a
    second, and each model's part of the tokens held (from first token to last, half the answer each)."""
    records = done.records
    names = np.array([item.model for item in records.workload.items])
    served = records.outcome == Outcome.SERVED
    ends = [float(records.end[(names == m.name) & served].max()) for m in case.problem.models]
    until = 0.8 * min(ends)
    held, count = [], []
    for model in case.problem.models:
        mine = (names == model.name) & served
        span = np.clip(np.minimum(records.end[mine], until) - records.first[mine], 0, None)
        held.append(float(span.sum() * (model.prompt + model.output / 2)))
        count.append(int((records.end[mine] <= until).sum()))
    parts = [value / sum(held) for value in held]
    return {"early_seconds": until, "early": count, "early_rate": sum(count) / until, "held": parts}


def _until_idle(case: Case, rows: dict[str, Row]) -> str:
    names = [model.name for model in case.problem.models]
    heads = ["POLICY", *(f"{name} ended" for name in names), "SECONDS", "REQUESTS/S", "TOKENS HELD %"]
    heads += [f"{name} in 8x %" for name in names]
    lines = []
    for policy, row in rows.items():
        held = " : ".join(f"{100 * part:.0f}" for part in row["held"])
        slo = [f"{100 * row['slo_models'][m.name]:.1f}" for m in case.problem.models]
        ended = map(str, row["early"])
        lines.append([policy, *ended, f"{row['early_seconds']:.0f}", f"{row['early_rate']:.2f}", held, *slo])
    return markdown(heads, lines)


# ---- pool and sharing --------------------------------------------------------------------------------


def pool(runs: Runs, args: Namespace) -> list[str]:
    systems = {
        "split, equal": ("mux", True, True),
        "split, by rates": ("mux", True, False),
        "shared": ("mux", False, False),
    }
    return _four(runs, args, "pool", systems)


def sharing(runs: Runs, args: Namespace) -> list[str]:
    systems = {
        "temporal": ("temporal", False, False),
        "one batch at a time": ("mux", False, False),
        "shared": ("mux", False, False),
    }
    return _four(runs, args, "sharing", systems)


def phases(runs: Runs, args: Namespace) -> list[str]:
    systems = {"in turn": ("mux", False, False), "apart": ("mux", False, False)}
    return _four(runs, args, "phases", systems)


def _four(runs: Runs, args: Namespace, what: str, systems: dict[str, tuple[str, bool, bool]]) -> list[str]:
    """``systems``: policy, whether the pool is split, whether into equal parts."""
    text, bars = [], {}
    for alpha, most in FOUR:
        case = four(alpha, most)
        rows = {}
        for system, (policy, split, equal) in systems.items():
            key = key_of(f"four models, {case.name}", system, args)
            rows[system] = runs.get(key, _one_of_four(case, system, policy, split, equal, args))
        bars[case.name] = rows
        text += [f"## {case.name}\n", table(rows)]
        last = list(rows)[-1]
        text += [f"* {last} / {s}: in window {_over(rows[last], rows[s])}" for s in rows if s != last]
        text.append("")
    draw(args, what, bars)
    return text


def _one_of_four(
    case: Case, system: str, policy: str, split: bool, equal: bool, args: Namespace
) -> Callable[[], Row]:
    def make() -> Row:
        whole = system == "one batch at a time"
        costs = setting.costs(setting.data(args.data), args.runtime)
        count = len(case.problem.models)
        unit = unit_of(case, costs, (100,) * count if whole else None)
        if equal:
            unit = structs.replace(unit, quota_weights=(1 / count,) * count)
        overbook = 0 if whole else args.overbook
        apart = system == "apart"
        _, row = run_unit(case, unit, policy, args, split=split, overbook=overbook, apart=apart)
        return {**row, "shares": list(unit.decode_shares)}

    return make


def draw(args: Namespace, what: str, bars: dict[str, dict[str, Row]]) -> None:
    """Throughput and attainment, a group of bars for each case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8, 2.2 * len(bars)), 7), layout="constrained")
    panels = figure.subplots(2, 1)
    systems = list(next(iter(bars.values())))
    values_of: list[tuple[Any, str, Callable[[Row], float]]] = [
        (panels[0], "requests/s ended in the window", lambda row: row["in_window"]),
        (panels[1], "within 8x alone, %", lambda row: 100 * row["slo"]["8"]),
    ]
    for axes, label, value in values_of:
        for i, system in enumerate(systems):
            places = [place + (i + 0.5) * 0.8 / len(systems) - 0.4 for place in range(len(bars))]
            values = [value(rows[system]) for rows in bars.values()]
            axes.bar(places, values, 0.8 / len(systems), label=system)
        axes.set_xticks(range(len(bars)), list(bars))
        axes.set_ylabel(label)
        axes.grid(axis="y", alpha=0.3)
    panels[0].legend()
    save(figure, args.out / f"ablation-{what}.png")


EXPERIMENTS: dict[str, Callable[[Runs, Namespace], list[str]]] = {
    "placement": placement,
    "scheduling": scheduling,
    "pool": pool,
    "sharing": sharing,
    "phases": phases,
}

if __name__ == "__main__":
    main()
