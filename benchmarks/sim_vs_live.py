"""The simulator against a live daemon: the same workload files, the same configuration, one table.

    python benchmarks/sim_vs_live.py --config muxd.toml --cost cost.json --workloads DIR [--policy mux]

DIR holds workload files (*.jsonl); without any, six are made there for the configured models. Every workload
gets a daemon of its own, warmed up first. Prints throughput and p90 latency, live and simulated, and the
error of the simulation; ``--json`` keeps all reports.
"""

import argparse
import sys
from pathlib import Path

import msgspec

from muxd.cli.bench import replay
from muxd.cli.local_daemon import local_daemon
from muxd.cli.simulate import cost_table, run
from muxd.cli.tables import render
from muxd.config import Config
from muxd.config_load import load
from muxd.cost.table import CostTable
from muxd.sim.generate import Recipe, generate
from muxd.sim.report import Report
from muxd.sim.workload import Item, Workload, read, write

THROUGHPUT_BOUND, LATENCY_BOUND = 0.10, 0.25  # what a simulation may be off by
_WARM = (8, 64, 32)  # requests at once, tokens in, tokens out


def make_workloads(folder: Path, models: list[str], capacity: float, seconds: float) -> None:
    """Six: light and heavy Poisson, uneven popularity, bursts, long prompts, long answers.

    ``capacity``: requests a second of 100 tokens in and 60 out that the device can just serve.
    """
    folder.mkdir(parents=True, exist_ok=True)
    short, in_heavy, out_heavy = "lognormal:100,60", "uniform:256-512,8-24", "uniform:16-64,96-160"
    recipes = {
        "1-light": Recipe(models, 0.3 * capacity, seconds, 0.9, 1.0, short, seed=1),
        "2-busy": Recipe(models, 0.7 * capacity, seconds, 0.9, 1.0, short, seed=2),
        "3-uneven": Recipe(models, 0.7 * capacity, seconds, 2.1, 1.0, short, seed=3),
        "4-bursts": Recipe(models, 0.5 * capacity, seconds, 0.9, 3.0, short, seed=4),
        "5-long-prompts": Recipe(models, 0.4 * capacity, seconds, 0.9, 1.0, in_heavy, seed=5),
        "6-overload": Recipe(models, 0.8 * capacity, seconds, 0.9, 1.0, out_heavy, seed=6),
    }
    for name, recipe in recipes.items():
        write(folder / f"{name}.jsonl", generate(recipe))


def capacity(cost: CostTable, models: list[str]) -> float:
    """Requests a second if every step ran at a batch of 8, the models taking turns."""
    each = [cost.prefill(m, 100, 0, 100) + 60 * cost.decode(m, 8, 130, 100) / 8 for m in models]
    return len(models) / sum(each)


def live(config: Path, settings: Config, policy: str, workload: Workload, cost: CostTable) -> Report:
    count, tokens_in, tokens_out = _WARM
    warm = [Item(0.0, m.name, tokens_in, tokens_out) for m in settings.model for _ in range(count)]
    with local_daemon(config, policy=policy) as admin:
        url = admin.status().address
        for _ in range(2):  # new workers are slow at first
            replay(Workload(warm, {}), url, policy)
        return replay(workload, url, policy, cost)


def row(name: str, real: Report, model: Report) -> tuple[list[str], bool]:
    """One line of the table, and whether both errors are inside their bounds."""
    pairs = {
        "throughput": (real.total.tokens_per_second, model.total.tokens_per_second, THROUGHPUT_BOUND),
        "latency": (_p90(real), _p90(model), LATENCY_BOUND),
    }
    cells, inside = [name, str(real.total.requests)], True
    for kind, (seen, said, bound) in pairs.items():
        error = said / seen - 1
        inside &= abs(error) <= bound
        digits = 1 if kind == "throughput" else 3
        cells += [f"{seen:.{digits}f}", f"{said:.{digits}f}", f"{100 * error:+.1f}%"]
    unserved = [f"{r.total.refused}+{r.total.failed}" for r in (real, model)]
    return [*cells, "/".join(unserved), "yes" if inside else "NO"], inside


def _p90(report: Report) -> float:
    return report.total.latency.p90 if report.total.latency else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--cost", type=Path, required=True)
    parser.add_argument("--workloads", type=Path, required=True, metavar="DIR")
    parser.add_argument("--policy", default="mux")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of workloads made here")
    parser.add_argument("--json", type=Path, help="write all reports")
    args = parser.parse_args()
    settings = load(args.config)
    cost = cost_table(args.cost, settings, [])
    if not list(args.workloads.glob("*.jsonl")):
        names = [model.name for model in settings.model]
        make_workloads(args.workloads, names, capacity(cost, names), args.seconds)
    rows, reports, good = [], [], True
    for file in sorted(args.workloads.glob("*.jsonl")):
        workload = read(file)
        model = run(workload, cost, settings, args.policy)
        real = live(args.config, settings, args.policy, workload, cost)
        cells, inside = row(file.stem, real, model)
        print("  ".join(cells), file=sys.stderr, flush=True)
        rows.append(cells)
        reports.append({"workload": file.name, "live": real, "simulated": model})
        good &= inside
        if args.json:
            args.json.write_bytes(msgspec.json.format(msgspec.json.encode(reports)))
    heads = (
        "WORKLOAD",
        "REQUESTS",
        "TOK/S LIVE",
        "SIM",
        "ERROR",
        "LAT90 LIVE",
        "SIM",
        "ERROR",
        "UNSERVED",
        "OK",
    )
    print(render(heads, rows))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
